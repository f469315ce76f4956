from __future__ import annotations

import pytest
from planted_store import planted_study

from nullarm.analysis import Analysis, Finding
from nullarm.protocols.rank_mechanism.closing import closing_block, mechanism_lines, overall_conclusion
from nullarm.protocols.rank_mechanism.seed_results import SeedResults
from nullarm.stats.verdict import Interval, Judgement, Verdict

STUDY = planted_study()
MECHANISM, COMPRESSION = STUDY.analysis.contrasts
WITHOUT_ESTIMATE = (Verdict.INVALID, Verdict.INSUFFICIENT_DATA, Verdict.NO_OP)


def judged(name: str, verdict: Verdict) -> Judgement:
    known = verdict not in WITHOUT_ESTIMATE
    return Judgement(
        name=name, verdict=verdict, estimate=0.015 if known else None,
        interval=Interval(-0.004, 0.034, 0.9, "made up") if known else None,
        p=0.03 if known else None, p_adjusted=0.06 if known else None, p_equivalence=None, n_seeds=3, n_items=40,
        alpha=0.05, margin=0.01, mde=None, n_needed=None, test="made up", reason="The reason with its numbers.",
    )  # fmt: skip


def analysis(mechanism: Verdict, compression: Verdict = Verdict.INCONCLUSIVE) -> Analysis:
    findings = (
        Finding(MECHANISM, judged("mechanism", mechanism), ()),
        Finding(COMPRESSION, judged("compression", compression), ()),
    )
    return Analysis(findings, False, "hash")


@pytest.mark.parametrize(
    ("mechanism", "compression", "words"),
    [
        (Verdict.CONFIRMED, Verdict.INCONCLUSIVE, "HYPOTHESIS CONFIRMED: audit-guided ranks provide real benefit"),
        (
            Verdict.DETECTED_BELOW_MARGIN,
            Verdict.CONFIRMED,
            "PARTIAL SUCCESS: audit-guided placement helps, but by less",
        ),
        (
            Verdict.EQUIVALENT,
            Verdict.CONFIRMED,
            "PARTIAL SUCCESS: compression works, but placement makes no difference",
        ),
        (Verdict.EQUIVALENT, Verdict.HARMFUL, "NOT SUPPORTED: placement makes no difference"),
        (Verdict.INCONCLUSIVE, Verdict.CONFIRMED, "PARTIAL SUCCESS: compression works, but no clear mechanism benefit"),
        (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, "INCONCLUSIVE: neither a mechanism benefit nor its absence"),
        (Verdict.HARMFUL, Verdict.CONFIRMED, "NOT SUPPORTED: audit-guided placement does worse"),
        (Verdict.NO_OP, Verdict.CONFIRMED, "NO CONCLUSION: the arms scored the same"),
        (Verdict.INVALID, Verdict.INVALID, "NO CONCLUSION: the results are not valid"),
        (Verdict.INSUFFICIENT_DATA, Verdict.CONFIRMED, "NO CONCLUSION: there are too few data"),
    ],
)
def test_each_verdict_has_its_outcome(mechanism: Verdict, compression: Verdict, words: str) -> None:
    assert overall_conclusion(STUDY, [], analysis(mechanism, compression)).startswith(words)


@pytest.mark.parametrize("mechanism", list(Verdict))
@pytest.mark.parametrize("compression", list(Verdict))
def test_only_a_confirmed_mechanism_confirms_the_hypothesis(mechanism: Verdict, compression: Verdict) -> None:
    said = overall_conclusion(STUDY, [], analysis(mechanism, compression))
    assert said.startswith("HYPOTHESIS CONFIRMED") == (mechanism is Verdict.CONFIRMED)
    if "compression works" in said:
        assert compression in (Verdict.CONFIRMED, Verdict.DETECTED_BELOW_MARGIN, Verdict.EQUIVALENT)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_mechanism_test_passes_and_fails_only_when_shown(verdict: Verdict) -> None:
    lines = mechanism_lines(Finding(MECHANISM, judged("mechanism", verdict), ()))
    assert lines[0].startswith("per_layer vs per_layer_shuffled: ")
    assert lines[0].endswith("no estimate" if verdict in WITHOUT_ESTIMATE else ", 3 seeds")
    assert lines[1].endswith(f"({verdict.value})")
    assert lines[-1] == "The reason with its numbers."
    passed = verdict in (Verdict.CONFIRMED, Verdict.DETECTED_BELOW_MARGIN)
    assert lines[1].startswith("✓ PASS") == passed
    assert lines[1].startswith("✗ FAIL") == (verdict in (Verdict.EQUIVALENT, Verdict.HARMFUL))


def test_an_undertrained_seed_comes_first_unless_the_others_were_judged() -> None:
    stopped = [SeedResults(7, "UNDERTRAINED", "UNDERTRAINED: the probe's dev accuracy is 0.1", {}, None, ())]
    assert overall_conclusion(STUDY, stopped, analysis(Verdict.INVALID)) == (
        "UNDERTRAINED: at seed 7 the probe's dev accuracy is 0.1, so nothing that follows it would mean anything"
    )
    assert overall_conclusion(STUDY, stopped, analysis(Verdict.CONFIRMED)).startswith("HYPOTHESIS CONFIRMED")


def test_the_block_shows_estimate_interval_p_and_seeds() -> None:
    block = closing_block(STUDY, [], analysis(Verdict.INCONCLUSIVE))
    numbers = "+0.015, 90 % interval [−0.004, +0.034], p = 0.030 (adjusted 0.060), 3 seeds"
    assert f"per_layer vs per_layer_shuffled: {numbers}" in block.splitlines()
    assert f"per_layer vs probe: {numbers}: INCONCLUSIVE" in " ".join(block.splitlines())
