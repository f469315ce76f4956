"""Every verdict can be reached, says why in numbers, and is decided again when a family demands it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nullarm.errors import InvalidResult, UsageError
from nullarm.stats.arrays import Floats
from nullarm.stats.decide import decide
from nullarm.stats.design import TestName
from nullarm.stats.evidence import Rule, by_item
from nullarm.stats.forecast import forecast
from nullarm.stats.judge import (
    apply_holm,
    judge_equivalence,
    judge_from_summary,
    judge_non_inferiority,
    judge_problem,
    judge_superiority,
    withhold,
)
from nullarm.stats.paired import Summary
from nullarm.stats.pairing import Problem, ProblemKind
from nullarm.stats.verdict import Evidence, Interval, Judgement, PValues, Verdict

SEEDS, K, ITEMS = 5, 3, 40


def world(
    effect: float = 0.0, *, sd: float = 1.0, seeds: int = SEEDS, k: int = K, seed: int = 0
) -> tuple[Floats, Floats]:
    """Treated [seeds, items] and controls [seeds, K, items], residual sd as given."""
    rng = np.random.default_rng(seed)
    scores = sd * rng.normal(size=(seeds, k + 1, ITEMS)) + rng.normal(size=(seeds, 1, 1))
    return scores[:, 0] + effect, scores[:, 1:]


def superiority(
    treated: Floats, controls: Floats, margin: float = 0.2, test: TestName = "within_seed_randomisation"
) -> Judgement:
    return judge_superiority(
        "audited − shuffled",
        treated,
        controls,
        alpha=0.05,
        margin=margin,
        test=test,
        rng=np.random.default_rng(1),
        resamples=500,
    )


@pytest.mark.parametrize(
    ("effect", "sd", "margin", "verdict", "words"),
    [
        (0.6, 1.0, 0.2, Verdict.CONFIRMED, "Treated is above its control by at least the margin 0.2: +0."),
        (0.6, 1.0, 0.0, Verdict.CONFIRMED, "Treated is above its control: +0."),
        (0.6, 1.0, 2.0, Verdict.DETECTED_BELOW_MARGIN, "but by less than the margin 2"),
        (-0.6, 1.0, 0.2, Verdict.HARMFUL, "Treated is below its control: -0."),
        (0.0, 0.2, 0.2, Verdict.EQUIVALENT, "The difference lies inside ±0.2"),
        (0.0, 1.0, 0.1, Verdict.INCONCLUSIVE, "Neither an effect nor its absence is shown"),
    ],
)
@pytest.mark.parametrize("test", ["within_seed_randomisation", "paired_t"])
def test_each_verdict_on_an_effect_has_its_reason(
    effect: float, sd: float, margin: float, verdict: Verdict, words: str, test: TestName
) -> None:
    judgement = superiority(*world(effect, sd=sd, seed=3), margin, test)
    assert judgement.verdict is verdict
    assert words in judgement.reason
    assert "over 5 seeds and 40 items" in judgement.reason
    assert judgement.reason.endswith(".")
    assert judgement.interval is not None
    assert judgement.interval.level == 0.9
    assert f"{judgement.estimate:+.4g}" in judgement.reason


def test_an_inconclusive_judgement_says_what_would_settle_it() -> None:
    judgement = superiority(*world(seed=3), margin=0.1)
    assert judgement.mde is not None
    assert judgement.n_needed is not None
    assert judgement.mde > 0.1
    assert judgement.n_needed > SEEDS
    assert f"finds an effect of {judgement.mde:.3g} with 80 % power" in judgement.reason
    assert f"about {judgement.n_needed} seeds would settle it" in judgement.reason
    hopeless = superiority(*world(seed=3), margin=1e-6)
    assert hopeless.n_needed is None
    assert "no number of seeds up to 1000 would settle it" in hopeless.reason


def test_without_a_margin_the_estimate_is_what_seeds_are_counted_for() -> None:
    judgement = superiority(*world(seed=3), margin=0.0)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.p_equivalence is None
    assert "TOST" not in judgement.reason
    assert judgement.n_needed is not None
    assert judgement.evidence is not None
    level = forecast(replace(judgement.evidence, estimate=0.0, n_needed=None), rng=np.random.default_rng(0))
    assert level.n_needed is None
    assert level.mde is not None


def test_the_test_is_named_in_full() -> None:
    assert superiority(*world()).test == "within-seed randomisation, exact over 1024 arrangements, one-sided"
    drawn = superiority(*world(seeds=12)).test
    assert drawn == "within-seed randomisation, 9999 random arrangements, one-sided"
    assert superiority(*world(), test="paired_t").test == "paired t over seeds, one-sided"


def test_identical_scores_are_a_no_op_whatever_the_design() -> None:
    treated, _ = world(seeds=2)
    judgement = superiority(treated, np.repeat(treated[:, None, :], 1, axis=1))
    assert judgement.verdict is Verdict.NO_OP
    assert judgement.reason == "Treated and control scores are identical on all 2 seeds and 40 items."
    assert (judgement.estimate, judgement.p, judgement.interval, judgement.mde) == (None, None, None, None)


def test_equal_means_of_different_items_are_no_no_op() -> None:
    treated = np.tile([0.0, 1.0], (5, 1))
    judgement = superiority(treated, np.stack([treated[:, ::-1]] * 3, axis=1))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.p == 1.0
    assert judgement.estimate == 0.0
    assert judgement.mde is None  # no noise was seen, so nothing is forecast


def test_a_design_that_cannot_reach_alpha_is_invalid() -> None:
    judgement = superiority(*world(5.0, seeds=3, k=1))
    assert judgement.verdict is Verdict.INVALID
    assert "cannot give a p below 0.125 (= 1/8), so α = 0.05 is out of reach" in judgement.reason


def test_broken_scores_are_invalid_and_few_are_insufficient() -> None:
    treated, controls = world()
    broken = controls.copy()
    broken[0, 0, 0] = np.nan
    assert superiority(treated, broken).verdict is Verdict.INVALID
    assert "NaN or infinite" in superiority(treated, broken).reason
    one = superiority(treated[:1], controls[:1])
    assert one.verdict is Verdict.INSUFFICIENT_DATA
    assert "needs at least 2" in one.reason
    none = superiority(treated, controls[:, :0])
    assert none.verdict is Verdict.INSUFFICIENT_DATA
    assert "0 controls for each" in none.reason


def test_seeds_that_differ_by_the_same_amount_leave_a_t_test_without_spread() -> None:
    _, controls = world(k=1)
    judgement = superiority(controls[:, 0] + 0.5, controls, test="paired_t")
    assert judgement.verdict is Verdict.INSUFFICIENT_DATA
    assert "All 5 seeds differ by exactly the same amount" in judgement.reason


def test_a_small_p_alone_is_not_enough() -> None:
    """Effects that differ between items: p is small for these items, the interval knows that others could be drawn."""
    rng = np.random.default_rng(3)
    controls = 0.1 * rng.normal(size=(6, 3, 12))
    of_items = 2 * rng.normal(size=12)
    treated = 0.1 * rng.normal(size=(6, 12)) + of_items - of_items.mean() + 0.3
    judgement = superiority(treated, controls)
    assert judgement.p is not None
    assert judgement.p < 0.05
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "is below α = 0.05 but the interval does not agree" in judgement.reason
    assert judgement.n_needed is None  # more seeds do not make more items


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    treated, controls = world(0.3)
    treated = treated + np.repeat(rng.normal(size=8), 5)
    ends = []
    for clusters in (None, np.repeat(np.arange(8), 5)):
        judgement = judge_superiority(
            "x",
            treated,
            controls,
            alpha=0.05,
            margin=0.1,
            test="within_seed_randomisation",
            rng=np.random.default_rng(1),
            clusters=clusters,
        )
        assert judgement.interval is not None
        ends.append(judgement.interval.high - judgement.interval.low)
    assert ends[1] > 1.5 * ends[0]


@pytest.mark.parametrize(
    ("effect", "verdict", "words"),
    [
        (0.0, Verdict.CONFIRMED, "Treated is not worse than its reference by 0.7"),
        (-2.0, Verdict.HARMFUL, "Treated is worse than its reference by more than 0.7"),
        (-0.7, Verdict.INCONCLUSIVE, "not worse than its reference by 0.7 is not shown"),
    ],
)
def test_non_inferiority(effect: float, verdict: Verdict, words: str) -> None:
    treated, controls = world(effect, seed=5)
    judgement = judge_non_inferiority(
        "compressed − probe", treated, controls[:, 0], alpha=0.05, margin=0.7, rng=np.random.default_rng(2)
    )
    assert judgement.verdict is verdict
    assert words in judgement.reason
    assert judgement.test == "non-inferiority, paired t over seeds, one-sided"
    assert judgement.p_equivalence is None
    if verdict is Verdict.INCONCLUSIVE:
        assert "this design clears a margin of" in judgement.reason


def test_equivalence_asks_about_the_null_first() -> None:
    treated, controls = world(0.3, sd=0.2, seed=6)
    both = superiority(treated, controls, margin=0.6)
    assert both.verdict is Verdict.DETECTED_BELOW_MARGIN
    rng = np.random.default_rng(2)
    same = judge_equivalence("A − A", treated, controls, alpha=0.05, margin=0.6, rng=rng)
    assert same.verdict is Verdict.EQUIVALENT
    assert same.p == same.p_equivalence
    assert judge_equivalence("A − A", treated, controls, alpha=0.05, margin=0.1, rng=rng).verdict is Verdict.CONFIRMED
    noisy = judge_equivalence("A − A", *world(seed=3), alpha=0.05, margin=0.1, rng=rng)
    assert noisy.verdict is Verdict.INCONCLUSIVE
    assert noisy.n_needed is not None


def test_the_runbooks_three_seeds_are_inconclusive() -> None:
    judgement = judge_from_summary(
        "mechanism",
        Summary(0.675, 0.008, 3),
        Summary(0.660, 0.012, 3),
        alpha=0.05,
        margin=0.01,
        rng=np.random.default_rng(0),
    )
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.p is not None
    assert round(judgement.p, 3) == 0.157
    assert judgement.n_items is None
    assert judgement.interval is not None
    assert judgement.interval.level == 0.95
    assert "p = 0.157" in judgement.reason
    assert "over 3 seeds; this design finds an effect of 0.03" in judgement.reason


@pytest.mark.parametrize(
    ("mean", "sd", "n", "verdict"),
    [
        (0.8, 0.01, 5, Verdict.CONFIRMED),
        (0.5, 0.01, 5, Verdict.HARMFUL),
        (0.66, 0.002, 9, Verdict.EQUIVALENT),
        (0.66, 0.01, 1, Verdict.INSUFFICIENT_DATA),
        (0.66, 0.0, 3, Verdict.INSUFFICIENT_DATA),
    ],
)
def test_summaries_reach_every_verdict(mean: float, sd: float, n: int, verdict: Verdict) -> None:
    control = Summary(0.66, sd, n)
    rng = np.random.default_rng(0)
    judgement = judge_from_summary("x", Summary(mean, sd, n), control, alpha=0.05, margin=0.01, rng=rng)
    assert judgement.verdict is verdict


def test_json_holds_plain_values_and_none_where_there_is_no_evidence() -> None:
    full, empty = superiority(*world(0.6)).to_json(), superiority(*world(seeds=1)).to_json()
    assert set(full) == set(empty)
    text = json.dumps([full, empty], allow_nan=False)
    assert json.loads(text)[0]["verdict"] == "CONFIRMED"
    assert set(json.loads(text)[0]["interval"]) == {"low", "high", "level", "method"}
    assert [empty[key] for key in ("estimate", "interval", "p", "mde", "n_needed")] == [None] * 5
    assert "evidence" not in full


def test_the_same_generator_gives_the_same_judgement() -> None:
    assert superiority(*world(0.1)) == superiority(*world(0.1))


def test_problems_and_failed_controls_are_judgements_too() -> None:
    empty = judge_problem("x", Problem(ProblemKind.EMPTY_ARM, "arm 'b' has no scores"), alpha=0.05, margin=0.1)
    broken = judge_problem("x", Problem(ProblemKind.MISSING_ITEM, "item 3 is missing"), alpha=0.05, margin=0.1)
    assert (empty.verdict, empty.reason) == (Verdict.INSUFFICIENT_DATA, "Arm 'b' has no scores.")
    assert (broken.verdict, broken.reason) == (Verdict.INVALID, "Item 3 is missing.")
    held = withhold("x", Verdict.INVALID, "the positive control failed", alpha=0.05, margin=0.1)
    assert held.verdict is Verdict.INVALID
    assert apply_holm([held]) == (held,)


BASE = Evidence(
    "x",
    "superiority",
    "a test",
    alpha=0.05,
    margin=0.1,
    n_seeds=5,
    estimate=0.2,
    interval=Interval(0.05, 0.35, 0.9, "by hand"),
    p=PValues(superior=0.01, harmful=0.99, equivalent=0.8),
)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.CONFIRMED),
        ({"p": PValues(0.05, 0.95)}, Verdict.INCONCLUSIVE),  # p must be below α, not at it
        ({"interval": Interval(0.0, 0.4, 0.9, "")}, Verdict.INCONCLUSIVE),  # the interval must exclude 0
        ({"estimate": 0.1 - 1e-15}, Verdict.CONFIRMED),  # rounding does not cost the margin
        ({"estimate": 0.099}, Verdict.DETECTED_BELOW_MARGIN),
        ({"p": PValues(0.9, 0.01)}, Verdict.INCONCLUSIVE),  # harm needs its interval too
        ({"p": PValues(0.9, 0.2, 0.01)}, Verdict.INCONCLUSIVE),  # TOST needs the interval inside
        ({"p": PValues(0.9, 0.2, 0.01), "interval": Interval(-0.05, 0.09, 0.9, "")}, Verdict.EQUIVALENT),
        (  # TOST's own interval decides where the other is wider
            {"p": PValues(0.9, 0.2, 0.01), "equivalence_interval": Interval(-0.05, 0.09, 0.9, "")},
            Verdict.EQUIVALENT,
        ),
        ({"p": PValues()}, Verdict.INCONCLUSIVE),
        ({"estimate": None}, Verdict.INSUFFICIENT_DATA),
        ({"obstacle": Verdict.NO_OP}, Verdict.NO_OP),
    ],
)
def test_the_decision_is_a_function_of_the_evidence(change: dict[str, object], verdict: Verdict) -> None:
    judgement = decide(replace(BASE, **change))  # type: ignore[arg-type]
    assert judgement.verdict is verdict


def test_holm_decides_again() -> None:
    detected, null, refused = (
        superiority(*world(0.1, seed=3)),
        superiority(*world(seed=8)),
        superiority(*world(seeds=1)),
    )
    assert detected.p is not None
    assert detected.p < 0.05 / 3
    assert detected.p_adjusted is None
    family = apply_holm([null, detected, refused])
    assert [judgement.verdict for judgement in family] == [null.verdict, detected.verdict, Verdict.INSUFFICIENT_DATA]
    assert family[1].p == detected.p
    assert family[1].p_adjusted == pytest.approx(3 * detected.p)
    assert "adjusted p" in family[1].reason
    assert family[2].p_adjusted is None
    crowded = apply_holm([detected] + [null] * 9)[0]
    assert crowded.p_adjusted == pytest.approx(10 * detected.p)
    assert crowded.verdict is Verdict.INCONCLUSIVE
    assert apply_holm([]) == ()


@pytest.mark.parametrize(
    ("p", "interval", "verdict"),
    [
        (PValues(superior=0.01, harmful=0.99), Interval(0.05, 0.35, 0.9, ""), Verdict.CONFIRMED),
        (PValues(superior=0.99, harmful=0.01), Interval(-0.35, -0.05, 0.9, ""), Verdict.HARMFUL),
        (PValues(superior=0.4, harmful=0.6, equivalent=0.01), Interval(-0.05, 0.05, 0.9, ""), Verdict.EQUIVALENT),
    ],
)
def test_holm_adjusts_every_kind_of_claim(p: PValues, interval: Interval, verdict: Verdict) -> None:
    claim = decide(replace(BASE, p=p, interval=interval))
    other = decide(replace(BASE, p=PValues(0.5, 0.5, 0.5), interval=Interval(-1, 1, 0.9, "")))
    assert claim.verdict is verdict
    assert apply_holm([claim, other, other])[0].verdict is verdict
    assert apply_holm([claim] + [other] * 9)[0].verdict is Verdict.INCONCLUSIVE


def test_bad_rules_and_shapes_are_refused_in_words() -> None:
    for alpha in (0.0, 0.5, float("nan")):
        with pytest.raises(UsageError, match="α is not a level"):
            Rule(alpha, 0.1)
    with pytest.raises(UsageError, match="margin δ is negative"):
        Rule(0.05, -0.1)
    with pytest.raises(UsageError, match="draws nothing"):
        Rule(0.05, 0.1, resamples=0)
    treated, controls = world()
    with pytest.raises(UsageError, match=r"unknown test.*valid: within_seed_randomisation, paired_t"):
        superiority(treated, controls, test="anova")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need a margin"):
        judge_equivalence("x", treated, controls, alpha=0.05, margin=0, rng=np.random.default_rng(0))
    with pytest.raises(InvalidResult, match="do not line up"):
        superiority(treated[:, 1:], controls)
    with pytest.raises(InvalidResult, match="ragged or not numeric"):
        superiority(treated, [[[1.0], [2.0]], [[1.0]]])  # type: ignore[arg-type]


def test_by_item_averages_seeds_replicates_and_clusters() -> None:
    treated = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    controls = np.array([[[0.0, 0.0, 2.0], [2.0, 2.0, 2.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 3.0]]])
    ours, theirs = by_item(treated, controls)
    assert ours.tolist() == [[2.0], [3.0], [7.0]]
    assert theirs.tolist() == [[[1.0]], [[1.0]], [[2.0]]]
    ours, theirs = by_item(treated, controls, np.array(["a", "a", "b"]))
    assert ours.tolist() == [[2.5], [7.0]]
    assert theirs.tolist() == [[[1.0]], [[2.0]]]


def test_items_as_units_give_a_verdict_from_one_seed() -> None:
    rng = np.random.default_rng(3)
    treated = rng.normal(0.5, 0.2, size=(1, 30))
    ours, theirs = by_item(treated, np.zeros((1, 1, 30)))
    judged = judge_superiority(
        "change", ours, theirs, alpha=0.05, margin=0.1, test="paired_t", rng=rng, resamples=500, unit="items"
    )
    oracle = stats.ttest_1samp(treated[0], 0.0, alternative="greater")
    assert judged.verdict is Verdict.CONFIRMED
    assert judged.p == pytest.approx(oracle.pvalue)
    assert (judged.n_seeds, judged.n_items, judged.unit) == (30, None, "items")
    assert "over 30 items" in judged.reason
    assert judged.test == "paired t over items, one-sided"
    assert judged.interval is not None
    assert judged.interval.method == "bootstrap of items, percentile"
    one = judge_superiority(
        "change", ours[:1], theirs[:1], alpha=0.05, margin=0.1, test="paired_t", rng=rng, unit="items"
    )
    assert "there is 1 item, and a verdict over items needs at least 2" in one.reason.lower()
