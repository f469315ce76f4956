"""A difference whose direction nobody declared: DIFFERENT either way, EQUIVALENT first, two intervals of two levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from nullarm.errors import InvalidResult, UsageError
from nullarm.stats.arrays import Floats
from nullarm.stats.decide import decide
from nullarm.stats.design import Design
from nullarm.stats.evidence import by_item
from nullarm.stats.judge import apply_holm, judge_difference, judge_from_summary, judge_superiority
from nullarm.stats.paired import Summary, summarise
from nullarm.stats.throughput import block_scores
from nullarm.stats.verdict import Evidence, Interval, Judgement, PValues, Unit, Verdict

BLOCKS = 12


def logs(effect: float, *, sd: float = 0.01, blocks: int = BLOCKS, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores [blocks, 1] of both arms, with weather that both share."""
    rng = np.random.default_rng(seed)
    weather = 3 + 0.1 * rng.normal(size=(blocks, 1))
    return (weather + effect + sd * rng.normal(size=(blocks, 1)), weather + sd * rng.normal(size=(blocks, 1)))


def judge(treated: Floats, reference: Floats, *, margin: float = 0.005, unit: Unit = "blocks") -> Judgement:
    rng = np.random.default_rng(1)
    return judge_difference("A − B", treated, reference, alpha=0.05, margin=margin, rng=rng, resamples=1_000, unit=unit)


@pytest.mark.parametrize(
    ("effect", "sd", "margin", "verdict", "words"),
    [
        (0.05, 0.01, 0.005, Verdict.DIFFERENT, "The arms differ: +0."),
        (-0.05, 0.01, 0.005, Verdict.DIFFERENT, "The arms differ: -0."),
        (0.0, 0.002, 0.005, Verdict.EQUIVALENT, "The difference lies inside ±0.005"),
        (
            0.003,
            0.0005,
            0.005,
            Verdict.EQUIVALENT,
            "The difference lies inside ±0.005",
        ),  # sure, and too small to matter
        (0.003, 0.0005, 0.0, Verdict.DIFFERENT, "The arms differ: +0."),  # no margin, so nothing is too small
        (0.0, 0.05, 0.005, Verdict.INCONCLUSIVE, "Neither an effect nor its absence is shown"),
    ],
)
def test_each_verdict_has_its_reason(effect: float, sd: float, margin: float, verdict: Verdict, words: str) -> None:
    judgement = judge(*logs(effect, sd=sd), margin=margin)
    assert judgement.verdict is verdict
    assert words in judgement.reason
    assert f"over {BLOCKS} blocks" in judgement.reason
    assert (judgement.unit, judgement.n_seeds, judgement.n_items) == ("blocks", BLOCKS, None)
    assert judgement.test == "paired t over blocks, two-sided"
    assert judgement.p_harm is None


def test_p_values_are_those_of_the_two_sided_t_test_and_of_tost() -> None:
    treated, reference = logs(0.004)
    judgement = judge(treated, reference)
    assert judgement.p == pytest.approx(stats.ttest_rel(treated[:, 0], reference[:, 0]).pvalue)
    tost = ttost_paired(treated[:, 0], reference[:, 0], -0.005, 0.005)[0]
    assert judgement.p_equivalence == pytest.approx(tost)


def test_the_interval_is_at_the_level_of_the_claim() -> None:
    different, same = judge(*logs(0.05)), judge(*logs(0.0, sd=0.002))
    assert different.interval is not None
    assert same.interval is not None
    assert (different.interval.level, same.interval.level) == (0.95, 0.9)
    assert "95 % interval" in different.reason
    assert "90 % interval" in same.reason
    assert different.interval.method == "bootstrap of blocks, percentile"
    for judgement in (different, same):
        evidence = judgement.evidence
        assert evidence is not None
        assert evidence.interval is not None
        assert evidence.equivalence_interval is not None
        wide, narrow = evidence.interval, evidence.equivalence_interval
        assert wide.low < narrow.low < narrow.high < wide.high


WIDE = Interval(-0.02, 0.3, 0.95, "by hand")
BASE = Evidence(
    "x", "difference", "a test", alpha=0.05, margin=0.1, n_seeds=9, unit="blocks", estimate=0.14,
    interval=Interval(0.01, 0.27, 0.95, "by hand"), equivalence_interval=Interval(0.03, 0.25, 0.9, "by hand"),
    p=PValues(different=0.04, equivalent=0.7),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.DIFFERENT),
        ({"interval": Interval(-0.27, -0.01, 0.95, "")}, Verdict.DIFFERENT),
        ({"p": PValues(different=0.05)}, Verdict.INCONCLUSIVE),  # below α, not at it
        ({"interval": WIDE}, Verdict.INCONCLUSIVE),  # the interval at 1 − α has to exclude 0 as well
        ({"p": PValues(superior=0.001, harmful=0.001)}, Verdict.INCONCLUSIVE),  # one-sided claims were not asked
        (  # TOST goes with its own interval, not with the wide one
            {"p": PValues(equivalent=0.01), "interval": WIDE, "equivalence_interval": Interval(-0.01, 0.09, 0.9, "")},
            Verdict.EQUIVALENT,
        ),
        ({"p": PValues(equivalent=0.01, different=0.01)}, Verdict.DIFFERENT),  # TOST's p alone is not enough
        ({"obstacle": Verdict.NO_OP}, Verdict.NO_OP),
    ],
)
def test_the_decision_follows_from_the_evidence(change: dict[str, object], verdict: Verdict) -> None:
    assert decide(replace(BASE, **change)).verdict is verdict  # type: ignore[arg-type]


def test_a_p_without_its_interval_says_so() -> None:
    assert "p = 0.04 is below α = 0.05 but the interval does not agree" in decide(replace(BASE, interval=WIDE)).reason


def test_identical_scores_change_nothing_and_broken_ones_are_invalid() -> None:
    treated, _ = logs(0.0)
    same = judge(treated, treated)
    assert (same.verdict, same.reason) == (
        Verdict.NO_OP, "Treated and control scores are identical on all 12 blocks.",
    )  # fmt: skip
    assert judge(treated, np.full_like(treated, np.nan)).verdict is Verdict.INVALID
    one = judge(treated[:1], treated[:1] + 1)
    assert one.verdict is Verdict.INSUFFICIENT_DATA
    assert "There is 1 block, and a verdict over blocks needs at least 2" in one.reason
    assert "All 12 blocks differ by exactly the same amount" in judge(treated + 1, treated).reason


def test_an_inconclusive_difference_says_what_would_settle_it() -> None:
    judgement = judge(*logs(0.0, sd=0.02, seed=3), margin=0.01)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.mde is not None
    assert judgement.n_needed is not None
    assert f"finds an effect of {judgement.mde:.3g} with 80 % power" in judgement.reason
    assert f"about {judgement.n_needed} blocks would settle it" in judgement.reason
    one_sided = judge_superiority(
        "x", *logs(0.0, sd=0.02, seed=3), alpha=0.05, margin=0.01, test="paired_t", rng=np.random.default_rng(1)
    )
    assert one_sided.mde is not None
    assert one_sided.mde < judgement.mde  # a direction that is declared is worth something
    assert judge(*logs(0.0, sd=0.02, seed=3), margin=0.0).n_needed is not None  # for an effect of the size estimated


def test_holm_keeps_a_family_of_differences() -> None:
    different, null = judge(*logs(0.05)), judge(*logs(0.0, sd=0.05))
    assert different.p is not None
    family = apply_holm([null, different])
    assert family[1].p_adjusted == pytest.approx(2 * different.p)
    assert family[1].verdict is Verdict.DIFFERENT
    assert "adjusted p" in family[1].reason
    weak = decide(BASE)
    assert apply_holm([weak, weak])[0].verdict is Verdict.INCONCLUSIVE
    adjusted = apply_holm([replace(weak, evidence=replace(BASE, p=PValues(different=0.02))), weak])
    assert [judgement.p_adjusted for judgement in adjusted] == [0.04, 0.04]


@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(10), 4)])
def test_items_and_clusters_are_units_too(clusters: np.ndarray | None) -> None:
    rng = np.random.default_rng(2)
    treated, reference = rng.normal(-0.5, 0.3, size=(1, 40)), np.zeros((1, 1, 40))
    units = by_item(treated, reference, clusters)
    judgement = judge(*units, unit="items" if clusters is None else "clusters")
    assert judgement.verdict is Verdict.DIFFERENT
    assert judgement.n_seeds == (40 if clusters is None else 10)
    assert judgement.p == pytest.approx(stats.ttest_1samp(units[0][:, 0], 0).pvalue)


def test_blocks_are_counted_when_they_are_measured() -> None:
    assert Design(1, 1, test="paired_blocks").fault() is None
    assert Design(1, 1, test="paired_items").fault() is None
    assert "at least 2 seeds" in (Design(1, 1, test="paired_t").fault() or "")


def test_unpaired_runs_are_judged_by_welch() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.05, 0.01, 6), rng.normal(1.0, 0.02, 5)
    judgement = judge_from_summary(
        "A − B", summarise(first), summarise(second), alpha=0.05, margin=0.005, rng=rng, question="difference",
        unit="runs",
    )  # fmt: skip
    assert judgement.verdict is Verdict.DIFFERENT
    assert judgement.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert judgement.reason.startswith("The arms differ: ")
    assert judgement.reason.endswith("over 5 runs.")


def test_a_summary_that_is_equivalent_shows_the_interval_of_tost() -> None:
    rng = np.random.default_rng(0)
    judgement = judge_from_summary("x", Summary(1, 0.01, 9), Summary(1, 0.01, 9), alpha=0.05, margin=0.02, rng=rng)
    assert judgement.verdict is Verdict.EQUIVALENT
    assert judgement.interval is not None
    assert judgement.interval.level == 0.9
    assert judgement.interval.inside(0.02)


def test_equal_scores_have_no_spread_however_they_are_rounded() -> None:
    flat = summarise([39.3] * 7)
    assert flat.mean == pytest.approx(39.3)
    assert (flat.sd, flat.n) == (0.0, 7)
    assert summarise([39.3]).sd == 0.0
    with pytest.raises(InvalidResult, match="no scores to summarise"):
        summarise([])


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="α is not a level"):
        judge_difference("x", *logs(0), alpha=0.6, margin=0, rng=np.random.default_rng(0))


def test_block_scores_are_mean_logs() -> None:
    speeds = np.array([[10.0, 40.0], [20.0, 20.0]])
    assert block_scores(speeds).ravel().tolist() == pytest.approx([np.log(20.0)] * 2)
