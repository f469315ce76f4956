"""What timings allow one to say, and when a session may not be believed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nullarm.bench.judging import judge_runs, judge_session
from nullarm.bench.runs import Phase, Run, State
from nullarm.bench.settings import BenchSettings, Thresholds
from nullarm.bench.spread import assess
from nullarm.errors import InvalidResult, UsageError
from nullarm.stats.contamination import compare_spread
from nullarm.stats.verdict import Verdict

GOLDEN = Path(__file__).parents[2] / "golden"
SLOWED = np.log(1 / 1.05)


def golden(name: str) -> tuple[list[float], list[float]]:
    """Speeds of `mcr` and of `baseline`."""
    rows = list(csv.DictReader((GOLDEN / f"mcr_ablation_{name}.csv").read_text().splitlines()))
    mcr, baseline = ([float(row["tps"]) for row in rows if row["tag"] == tag] for tag in ("mcr", "baseline"))
    return mcr, baseline


def session(
    effect: float = 0.0, *, sd: float = 0.001, again: float = 0.0, slowed: float = SLOWED,
    treated_sd: float | None = None, slope: float = 0.0, seed: int = 0,
) -> list[Run]:  # fmt: skip
    """A run table: 10 blocks of the contrast, 4 of A/A, 3 of the slowed control, as log effects."""
    rng = np.random.default_rng(seed)
    phases: list[tuple[Phase, int, float]] = [("contrast", 10, effect), ("again", 4, again), ("slowed", 3, slowed)]
    runs: list[Run] = []
    for phase, blocks, shift in phases:
        for block in range(blocks):
            weather = 0.05 * rng.normal()
            for treated in (True, False, False, True):
                noise = (treated_sd if treated and treated_sd is not None else sd) * rng.normal()
                log = 3 + weather + shift * treated + noise + slope * len(runs)
                runs.append(_run(len(runs), phase, block, treated, float(np.exp(log))))
    return runs


def _run(number: int, phase: Phase, block: int, treated: bool, speed: float) -> Run:
    return Run(
        run=number, phase=phase, block=block, attempt=1, arm="treatment" if treated else "control", prefill_s=0.1,
        decode_s=1.0, tokens_per_s=speed, tokens=64, state=State.CLEAN, reasons="", gemm_before=0.01, gemm_after=0.01,
        copy_before=0.01, copy_after=0.01, foreign_cpus=0.0, started_s=2.0 * number,
    )  # fmt: skip


def marked(runs: Sequence[Run], blocks: set[int], state: State) -> list[Run]:
    """The table with the first run of some blocks of the contrast in a state."""
    return [
        replace(r, state=state, reasons="foreign CPU load: 1.2 cores")
        if r.phase == "contrast" and r.block in blocks and r.arm == "treatment"
        else r
        for r in runs
    ]


@pytest.mark.parametrize("rule", ["ours", "source"])
def test_golden_clean_session(rule: str) -> None:
    judged = judge_runs(*golden("clean"), margin=0.005, rule=rule)  # type: ignore[arg-type]
    assert (judged.verdict, judged.session) == (Verdict.EQUIVALENT, State.CLEAN)
    assert judged.p is not None
    assert round(judged.p, 3) == 0.207
    assert judged.estimate == pytest.approx(-0.05 / 39.275)
    assert len(judged.reasons) == 1
    assert "lies inside ±0.005" in judged.reasons[0]
    narrow = judge_runs(*golden("clean"), margin=0.0025)
    assert (narrow.verdict, narrow.session) == (Verdict.INCONCLUSIVE, State.CLEAN)


@pytest.mark.parametrize("rule", ["ours", "source"])
def test_golden_contaminated_session(rule: str) -> None:
    judged = judge_runs(*golden("contaminated"), margin=0.005, rule=rule)  # type: ignore[arg-type]
    assert (judged.verdict, judged.session) == (Verdict.INVALID, State.CONTAMINATED)
    data = judged.to_json()
    assert round(float(str(data["p"])), 3) == 0.214
    assert (data["verdict"], data["session"]) == ("INVALID", "CONTAMINATED")
    assert judged.reasons[0] == "The session is contaminated: its numbers show neither a difference nor a null."
    assert "variance ratio 440 (21 as a ratio of standard deviations)" in judged.reasons[1]
    assert not any("INCONCLUSIVE" in reason or "absence" in reason for reason in judged.reasons)


def test_runs_are_welchs_as_shares_of_the_controls_mean() -> None:
    mcr, baseline = golden("clean")
    judged = judge_runs(mcr, baseline, margin=0.005, alpha=0.1)
    oracle = stats.ttest_ind(mcr, baseline, equal_var=False)
    interval = oracle.confidence_interval(0.8)
    mean = np.mean(baseline)
    assert judged.p == pytest.approx(oracle.pvalue)
    assert judged.ci is not None
    assert judged.ci.level == pytest.approx(0.8)
    assert (judged.ci.low, judged.ci.high) == pytest.approx((interval.low / mean, interval.high / mean))
    assert (judged.contrast.judgement.n_seeds, judged.contrast.judgement.unit) == (4, "runs")


def test_runs_that_differ_are_different_and_equal_runs_are_no_evidence() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(30, 0.3, 6), rng.normal(40, 0.3, 6)
    assert judge_runs(slow, fast, margin=0.005).verdict is Verdict.DIFFERENT
    same = judge_runs([39.3] * 4, [39.3] * 4, margin=0.005)
    assert (same.verdict, same.session, same.ci) == (Verdict.INSUFFICIENT_DATA, State.CLEAN, None)
    json.dumps(same.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("second", "ours", "source", "words"),
    [
        ([40.0, 40.1, 40.2, 40.3], State.CLEAN, State.CLEAN, ""),
        ([40.0, 40.1, 40.3, 40.4], State.CLEAN, State.SUSPECT, "above 1.5"),
        ([39.2, 39.9, 40.6, 41.0], State.SUSPECT, State.CONTAMINATED, "above 5"),
        ([20.0, 20.05, 20.1, 20.15], State.CLEAN, State.CONTAMINATED, "slow arm: a mean of 20.07 tok/s, below 38"),
    ],
)
def test_both_rules_on_spread(second: list[float], ours: State, source: State, words: str) -> None:
    spread = compare_spread([40.0, 40.1, 40.2, 40.3], second)
    assert assess(spread, "ours").state is ours
    by_source = assess(spread, "source")
    assert by_source.state is source
    assert words in "; ".join(by_source.reasons)
    assert bool(by_source.reasons) == (source is not State.CLEAN)


@pytest.mark.parametrize(
    ("effect", "sd", "verdict"),
    [
        (np.log(0.95), 0.005, Verdict.DIFFERENT), (np.log(1.05), 0.005, Verdict.DIFFERENT),
        (0.0, 0.001, Verdict.EQUIVALENT), (0.0, 0.02, Verdict.INCONCLUSIVE),
    ],
)  # fmt: skip
def test_a_clean_session_carries_its_verdict(effect: float, sd: float, verdict: Verdict) -> None:
    judged = judge_session(session(effect, sd=sd, slowed=np.log(0.8)), margin=0.005)
    assert (judged.verdict, judged.session) == (verdict, State.CLEAN)
    assert judged.estimate == pytest.approx(np.expm1(effect), abs=0.02)
    assert (judged.contrast.judgement.n_seeds, judged.contrast.judgement.unit) == (10, "blocks")
    assert judged.again is not None
    assert judged.again.judgement.alpha == 0.01
    assert judged.slowed is not None
    assert judged.slowed.judgement.verdict is Verdict.DIFFERENT
    assert not judged.blind
    data = json.loads(json.dumps(judged.to_json(), allow_nan=False))
    assert data["verdict"] == verdict.value
    assert data["ci"][0] < data["estimate"] < data["ci"][1]
    assert data["ci_level"] == 0.9
    assert data["slowed"]["verdict"] == "DIFFERENT"


def test_a_session_is_judged_the_same_each_time() -> None:
    assert judge_session(session(), margin=0.005) == judge_session(session(), margin=0.005)


def test_drift_is_told_and_cancels() -> None:
    judged = judge_session(session(sd=0.001, slope=-0.001), margin=0.005)
    assert judged.verdict is Verdict.EQUIVALENT
    assert judged.drift is not None
    # One run every two seconds, so 30 in a minute; blocks' weather makes the slope uncertain.
    assert judged.drift.to_json()["per_minute"] == pytest.approx(-0.03, abs=0.05)


def test_contaminated_blocks_never_enter_and_few_of_them_only_raise_suspicion() -> None:
    runs = [
        replace(r, tokens_per_s=r.tokens_per_s / 10) if r.state is State.CONTAMINATED else r
        for r in marked(session(), {3}, State.CONTAMINATED)
    ]
    judged = judge_session(runs, margin=0.005)
    assert (judged.verdict, judged.session) == (Verdict.EQUIVALENT, State.SUSPECT)
    assert judged.contrast.judgement.n_seeds == 9
    assert judged.reasons[1] == "1 of 17 blocks stayed contaminated (foreign CPU load in 2 runs)"


def test_many_contaminated_blocks_make_the_session_invalid() -> None:
    judged = judge_session(marked(session(), {1, 3, 5}, State.CONTAMINATED), margin=0.005)
    assert (judged.verdict, judged.session) == (Verdict.INVALID, State.CONTAMINATED)
    assert "3 of 17 blocks stayed contaminated" in judged.reasons[1]
    assert judged.estimate is not None
    nothing = judge_session(marked(session(), set(range(10)), State.CONTAMINATED), margin=0.005)
    assert (nothing.verdict, nothing.estimate, nothing.spread, nothing.drift) == (Verdict.INVALID, None, None, None)


def test_a_block_that_was_run_again_counts_as_it_ended() -> None:
    runs = marked(session(), {3}, State.CONTAMINATED)
    again = [
        replace(r, run=len(runs) + i, attempt=2)
        for i, r in enumerate(r for r in session() if r.phase == "contrast" and r.block == 3)
    ]
    judged = judge_session([*runs, *again], margin=0.005)
    assert (judged.session, judged.contrast.judgement.n_seeds) == (State.CLEAN, 10)


def test_a_control_that_differs_from_itself_contaminates() -> None:
    judged = judge_session(session(again=0.03, sd=0.001), margin=0.005)
    assert (judged.verdict, judged.session) == (Verdict.INVALID, State.CONTAMINATED)
    assert judged.reasons[1].startswith("A/A differs: the control against itself, +2.95%, p = ")
    small = judge_session(session(again=0.003, sd=0.0001), margin=0.005)
    assert small.session is State.CLEAN  # it differs, by less than matters
    assert small.again is not None
    assert small.again.judgement.verdict is Verdict.EQUIVALENT


def test_a_missed_slowdown_forbids_the_null_and_nothing_else() -> None:
    settings = BenchSettings(slowdown=0.07)
    null = judge_session(session(slowed=0.0), margin=0.005, settings=settings)
    assert (null.verdict, null.session) == (Verdict.INVALID, State.SUSPECT)
    assert null.blind
    assert null.reasons[0] == "The session missed a slowdown that was there: it cannot show a null."
    assert "the injected slowdown of 7.0% was not found: the session is too noisy" in null.reasons[1]
    found = judge_session(session(0.1, slowed=0.0), margin=0.005)
    assert (found.verdict, found.session, found.blind) == (Verdict.DIFFERENT, State.SUSPECT, True)
    wrong_way = judge_session(session(slowed=0.05), margin=0.005)
    assert wrong_way.slowed is not None
    assert wrong_way.slowed.judgement.verdict is Verdict.DIFFERENT
    assert wrong_way.verdict is Verdict.INVALID  # faster is not slower


def test_a_session_without_its_controls_is_suspect_and_shows_no_null() -> None:
    judged = judge_session([r for r in session() if r.phase == "contrast"], margin=0.005)
    assert (judged.verdict, judged.session, judged.blind) == (Verdict.INVALID, State.SUSPECT, True)
    assert judged.contrast.judgement.verdict is Verdict.EQUIVALENT
    assert judged.reasons == (
        "The session had no positive control: it cannot show a null.",
        "no A/A: the control was not run against itself", "no positive control: no slowdown was injected",
    )  # fmt: skip
    differs = judge_session([r for r in session(0.1) if r.phase == "contrast"], margin=0.005)
    assert (differs.verdict, differs.session) == (Verdict.DIFFERENT, State.SUSPECT)


@pytest.mark.parametrize("phase", ["again", "slowed"])
def test_a_control_of_which_one_block_or_none_is_left_tested_nothing(phase: Phase) -> None:
    def is_mine(run: Run) -> bool:
        return run.phase == phase and run.block > 0

    name = {"again": "A/A", "slowed": "positive control"}[phase]
    one = [r for r in session() if not is_mine(r)]
    dirty = [replace(r, state=State.CONTAMINATED, reasons="foreign CPU load: 1.2 cores") if is_mine(r) else r
             for r in session()]  # fmt: skip
    kept = Thresholds(blocks_left=0.9)  # so that only the control speaks
    for runs in (one, dirty):
        judged = judge_session(runs, margin=0.005, settings=BenchSettings(thresholds=kept))
        assert judged.session is State.SUSPECT
        assert any(reason.startswith(f"{name} could not be judged: ") for reason in judged.reasons)
        assert judged.blind == (phase == "slowed")
        assert judged.verdict is (Verdict.INVALID if judged.blind else Verdict.EQUIVALENT)
    none = judge_session([r for r in dirty if is_mine(r)], margin=0.005)
    assert f"{name} could not be judged: No block may be believed." in none.reasons


def test_spread_alone_raises_suspicion_at_most() -> None:
    unequal = [
        replace(r, tokens_per_s=r.tokens_per_s * (1 + 0.5 * (r.block % 2)))
        if (r.phase, r.arm) == ("contrast", "treatment")
        else r
        for r in session()
    ]
    judged = judge_session(unequal, margin=0.005)
    assert judged.spread is not None
    assert assess(judged.spread, "ours").state is State.CONTAMINATED
    assert judged.session is State.SUSPECT
    assert judged.verdict is not Verdict.INVALID
    assert "unequal spread" in judged.reasons[1]


@pytest.mark.parametrize("factor", [0.1, 0.98, 7.0])
@pytest.mark.parametrize("noise", [{}, {"treated_sd": 0.2}, {"again": 0.03}, {"slowed": 0.0}])
def test_the_state_never_hangs_on_the_effect(factor: float, noise: dict[str, float]) -> None:
    runs = session(sd=0.01, **noise)  # type: ignore[arg-type]
    other = [
        replace(r, tokens_per_s=factor * r.tokens_per_s) if (r.phase, r.arm) == ("contrast", "treatment") else r
        for r in runs
    ]
    before, after = judge_session(runs, margin=0.005), judge_session(other, margin=0.005)
    assert after.session is before.session
    assert len(after.reasons) == len(before.reasons)
    assert (1 + (after.estimate or 0)) == pytest.approx(factor * (1 + (before.estimate or 0)))


def test_blocked_runs_are_not_paired() -> None:
    rng = np.random.default_rng(0)
    runs = [_run(i, "contrast", 0, i >= 4, float(rng.normal(40, 0.05))) for i in range(8)]
    judged = judge_session(runs, margin=0.005, settings=BenchSettings(procedure="blocked"))
    assert (judged.contrast.judgement.n_seeds, judged.contrast.judgement.unit) == (4, "runs")
    speeds = [r.tokens_per_s for r in runs]
    assert judged.p == pytest.approx(stats.ttest_ind(speeds[4:], speeds[:4], equal_var=False).pvalue)
    assert (judged.verdict, judged.session) == (Verdict.INVALID, State.SUSPECT)
    assert judged.contrast.judgement.verdict is Verdict.EQUIVALENT
    assert judged.reasons[0] == "The session had no positive control: it cannot show a null."
    dirty = [replace(r, state=State.CONTAMINATED, reasons="foreign CPU load: 1.2 cores") for r in runs]
    nothing = judge_session(dirty, margin=0.005, settings=BenchSettings(procedure="blocked"))
    assert (nothing.verdict, nothing.session, nothing.estimate) == (Verdict.INVALID, State.CONTAMINATED, None)


def test_no_runs_are_too_few() -> None:
    judged = judge_session([], margin=0.005)
    assert judged.verdict is Verdict.INSUFFICIENT_DATA
    assert judged.reasons[0] == "No block may be believed."


def test_broken_input_is_refused_in_words() -> None:
    with pytest.raises(InvalidResult, match="ragged"):
        judge_session(session()[1:], margin=0.005)
    with pytest.raises(InvalidResult, match="at least 2 runs of each arm"):
        judge_runs([39.2], [39.2, 39.3], margin=0.005)
    with pytest.raises(UsageError, match="α is not a level"):
        judge_runs([39.2, 39.3], [39.2, 39.3], margin=0.005, alpha=0.5)
