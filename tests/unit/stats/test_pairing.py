"""Long-form scores line up completely, or say what is missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullarm.errors import InvalidResult
from nullarm.stats.pairing import LongScores, PairedScores, Problem, ProblemKind, pair_scores

Row = tuple[str, int, int, str, float, str]
ARMS = ("audited", "shuffled")


def complete() -> list[Row]:
    """Two seeds (one is 0), one treated run, two controls, three items in two documents."""
    return [
        (arm, replicate, seed, item, 100 * seed + 10 * replicate + i + (arm == "audited") / 2, f"doc{i // 2}")
        for arm, replicates in (("audited", 1), ("shuffled", 2))
        for seed in (0, 7)
        for replicate in range(replicates)
        for i, item in enumerate(("a", "b", "c"))
    ]


def paired(rows: list[Row], *, clusters: bool = False, seeds: list[object] | None = None) -> PairedScores | Problem:
    arm, replicate, seed, item, score, cluster = (np.array(column) for column in zip(*rows, strict=True))
    scores = LongScores(arm, replicate, seed, item, score, cluster if clusters else None)
    return pair_scores(scores, arms=ARMS, seeds=seeds)


def test_a_complete_table_becomes_matrices() -> None:
    scores = paired([*complete(), ("other", 0, 99, "z", 1.0, "doc9")], clusters=True)
    assert isinstance(scores, PairedScores)
    assert scores.seeds == (0, 7)
    assert scores.items == ("a", "b", "c")
    assert scores.single("audited").tolist() == [[0.5, 1.5, 2.5], [700.5, 701.5, 702.5]]
    assert scores.replicates("shuffled").shape == (2, 2, 3)
    assert scores.replicates("shuffled")[1, 1].tolist() == [710, 711, 712]
    assert scores.clusters is not None
    assert scores.clusters.tolist() == [0, 0, 1]


@given(st.permutations(complete()))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_does_not_matter(rows: list[Row]) -> None:
    scores, straight = paired(rows), paired(complete())
    assert isinstance(scores, PairedScores)
    assert isinstance(straight, PairedScores)
    assert scores.clusters is None
    assert all((scores.arms[arm] == straight.arms[arm]).all() for arm in ARMS)


def test_declared_seeds_choose_and_order_the_rows() -> None:
    scores = paired(complete(), seeds=[7])
    assert isinstance(scores, PairedScores)
    assert scores.single("audited").tolist() == [[700.5, 701.5, 702.5]]
    turned = paired(complete(), seeds=[7, 0])
    assert isinstance(turned, PairedScores)
    assert turned.seeds == (7, 0)
    assert turned.single("audited")[1].tolist() == [0.5, 1.5, 2.5]


def without(arm: str, **gone: object) -> Callable[[list[Row]], list[Row]]:
    names = ("arm", "replicate", "seed", "item")
    return lambda rows: [
        row for row in rows if row[0] != arm or any(row[names.index(name)] != value for name, value in gone.items())
    ]


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (without("audited"), ProblemKind.EMPTY_ARM, "arm 'audited' has no scores"),
        (without("audited", seed=0), ProblemKind.MISSING_SEED, "arm 'audited' has no scores for seed 0"),
        (without("shuffled", seed=7, replicate=1), ProblemKind.MISSING_REPLICATE, "seed 7 lacks replicate 1"),
        (without("shuffled", seed=7, replicate=1, item="b"), ProblemKind.MISSING_ITEM, "lacks item 'b' (1 scores"),
        (lambda rows: [*rows, rows[4]], ProblemKind.DUPLICATE_ITEM, "seed 7, replicate 0 scored item 'b' 2 times"),
        (lambda rows: [(*rows[0][:4], float("nan"), "doc0"), *rows[1:]], ProblemKind.NOT_FINITE, "item 'a' is nan"),
        (lambda rows: [*rows[:-1], (*rows[-1][:4], float("-inf"), "doc1")], ProblemKind.NOT_FINITE, "is -inf"),
        (
            lambda rows: [(*rows[0][:5], "doc5"), *rows[1:]],
            ProblemKind.CLUSTER_CONFLICT,
            "item 'a' belongs to more than one cluster",
        ),
    ],
)
def test_each_fault_has_its_own_outcome(spoil: Callable[[list[Row]], list[Row]], kind: ProblemKind, words: str) -> None:
    problem = paired(spoil(complete()), clusters=True)
    assert isinstance(problem, Problem)
    assert problem.kind is kind
    assert words in problem.message


def test_a_declared_seed_that_nobody_ran_is_missing() -> None:
    problem = paired(complete(), seeds=[0, 7, 8])
    assert isinstance(problem, Problem)
    assert problem.message == "arm 'audited' has no scores for seed 8"


def test_misuse_is_refused_in_words() -> None:
    with pytest.raises(InvalidResult, match="different lengths"):
        pair_scores(LongScores(["a"], [0], [0], ["x", "y"], [1.0]), arms=["a"])
    with pytest.raises(InvalidResult, match="asked for twice"):
        paired(complete(), seeds=[0, 0])
    scores = paired(complete())
    assert isinstance(scores, PairedScores)
    with pytest.raises(InvalidResult, match=r"no such arm.*valid: audited, shuffled"):
        scores.replicates("shufled")
    with pytest.raises(InvalidResult, match="more than once per seed"):
        scores.single("shuffled")
