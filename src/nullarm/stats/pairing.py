"""Long-form scores to matrices that line up, or a `Problem`: missing is a type, never 0, −1 or NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, Ints

Labels = npt.NDArray[Any]


class ProblemKind(StrEnum):
    """Why scores cannot be paired."""

    EMPTY_ARM = "EMPTY_ARM"
    MISSING_SEED = "MISSING_SEED"
    MISSING_REPLICATE = "MISSING_REPLICATE"
    MISSING_ITEM = "MISSING_ITEM"
    DUPLICATE_ITEM = "DUPLICATE_ITEM"
    NOT_FINITE = "NOT_FINITE"
    CLUSTER_CONFLICT = "CLUSTER_CONFLICT"


@dataclass(frozen=True)
class Problem:
    """Scores that cannot be paired.

    Attributes:
        kind: What is wrong.
        message: The culprit, in one sentence.
    """

    kind: ProblemKind
    message: str


@dataclass(frozen=True)
class LongScores:
    """One row per scored item, as arrays of one length.

    Attributes:
        arm: Name of the arm.
        replicate: Which control or repetition within the arm and seed; any label, 0 when there is one.
        seed: Seed; 0 is a seed.
        item: Item id, shared between arms.
        score: Score of the item.
        cluster: What the item belongs to (document, template); None when items are independent.
    """

    arm: npt.ArrayLike
    replicate: npt.ArrayLike
    seed: npt.ArrayLike
    item: npt.ArrayLike
    score: npt.ArrayLike
    cluster: npt.ArrayLike | None = None


@dataclass(frozen=True)
class PairedScores:
    """Scores of every arm on the same seeds and items.

    Attributes:
        arms: Arm to its [seeds, replicates, items] matrix; replicates may differ between arms.
        seeds: Seeds, in the order of the first axis.
        items: Item ids, in the order of the last axis.
        clusters: [items] cluster of each item as an integer code; None when items are independent.
    """

    arms: Mapping[str, Floats]
    seeds: tuple[Any, ...]
    items: tuple[Any, ...]
    clusters: Ints | None

    def replicates(self, arm: str) -> Floats:
        """[seeds, replicates, items] of an arm.

        Raises:
            InvalidResult: The arm was not paired.
        """
        if arm not in self.arms:
            raise InvalidResult("no such arm among the paired scores", value=arm, valid=self.arms)
        return self.arms[arm]

    def single(self, arm: str) -> Floats:
        """[seeds, items] of an arm that ran once per seed.

        Raises:
            InvalidResult: The arm was not paired or has several replicates.
        """
        scores = self.replicates(arm)
        if scores.shape[1] != 1:
            raise InvalidResult(f"arm {arm!r} ran more than once per seed", value=scores.shape[1], valid="1 replicate")
        return scores[:, 0, :]


def pair_scores(
    scores: LongScores, *, arms: Sequence[str], seeds: Sequence[object] | None = None
) -> PairedScores | Problem:
    """Line the scores of `arms` up by seed, replicate and item.

    Args:
        scores: Long-form rows; rows of other arms are left out.
        arms: Arms that must be there.
        seeds: Seeds that must be there for every arm; all that occur in these arms when None.

    Returns:
        The matrices, or the first problem found: a complete rectangle or nothing.

    Raises:
        InvalidResult: The columns have different lengths, or a seed is asked for twice.
    """
    table = _columns(scores, arms)
    if seeds is not None and len(set(seeds)) != len(seeds):
        raise InvalidResult("a seed is asked for twice", value=list(seeds), valid="distinct seeds")
    values = table["score"]
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        return Problem(ProblemKind.NOT_FINITE, f"the score of {_where(table, row)} is {values[row]}")
    empty = [arm for arm in arms if not (table["arm"] == arm).any()]
    if empty:
        return Problem(ProblemKind.EMPTY_ARM, f"arm {empty[0]!r} has no scores")
    clusters = _clusters(table)
    if isinstance(clusters, Problem):
        return clusters
    every_seed = np.unique(table["seed"]) if seeds is None else np.asarray(seeds)
    every_item = np.unique(table["item"])
    matrices: dict[str, Floats] = {}
    for arm in arms:
        matrix = _matrix(_rows(table, table["arm"] == arm), arm, every_seed, every_item)
        if isinstance(matrix, Problem):
            return matrix
        matrices[arm] = matrix
    return PairedScores(matrices, tuple(every_seed.tolist()), tuple(every_item.tolist()), clusters)


def _columns(scores: LongScores, arms: Sequence[str]) -> dict[str, Labels]:
    table: dict[str, Labels] = {
        "arm": np.asarray(scores.arm),
        "replicate": np.asarray(scores.replicate),
        "seed": np.asarray(scores.seed),
        "item": np.asarray(scores.item),
        "score": np.asarray(scores.score, dtype=np.float64),
    }
    if scores.cluster is not None:
        table["cluster"] = np.asarray(scores.cluster)
    lengths = {name: column.shape for name, column in table.items()}
    if len(set(lengths.values())) != 1 or table["score"].ndim != 1:
        raise InvalidResult("the columns of the scores have different lengths", value=lengths)
    return _rows(table, np.isin(table["arm"], list(arms)))


def _rows(table: Mapping[str, Labels], chosen: npt.NDArray[np.bool_]) -> dict[str, Labels]:
    return {name: column[chosen] for name, column in table.items()}


def _where(table: Mapping[str, Labels], row: int) -> str:
    arm, seed, replicate, item = (table[name].tolist()[row] for name in ("arm", "seed", "replicate", "item"))
    return f"arm {arm!r}, seed {seed!r}, replicate {replicate!r}, item {item!r}"


def _clusters(table: Mapping[str, Labels]) -> Ints | Problem | None:
    if "cluster" not in table:
        return None
    codes = np.unique(table["cluster"], return_inverse=True)[1]
    items, first, inverse = np.unique(table["item"], return_index=True, return_inverse=True)
    of_item: Ints = codes[first].astype(np.int64)
    conflict = np.flatnonzero(of_item[inverse] != codes)
    if conflict.size:
        item = items.tolist()[int(inverse[conflict[0]])]
        return Problem(ProblemKind.CLUSTER_CONFLICT, f"item {item!r} belongs to more than one cluster")
    return of_item


def _matrix(rows: Mapping[str, Labels], arm: str, seeds: Labels, items: Labels) -> Floats | Problem:
    """[seeds, replicates, items] of one arm, or why it is not complete."""
    kept = _rows(rows, np.isin(rows["seed"], seeds))
    replicates = np.unique(rows["replicate"])
    shape = (len(seeds), len(replicates), len(items))
    order = np.argsort(seeds)
    cell = np.ravel_multi_index(
        (
            order[np.searchsorted(seeds, kept["seed"], sorter=order)],
            np.searchsorted(replicates, kept["replicate"]),
            np.searchsorted(items, kept["item"]),
        ),
        shape,
    )
    count = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
    if (count != 1).any():
        return _gap(count, arm, seeds, replicates, items)
    matrix: Floats = np.empty(count.size)
    matrix[cell] = kept["score"]
    return matrix.reshape(shape)


def _gap(count: Ints, arm: str, seeds: Labels, replicates: Labels, items: Labels) -> Problem:
    """The widest hole in `count` [seeds, replicates, items], where every cell should be 1."""
    seed = np.flatnonzero(count.sum(axis=(1, 2)) == 0)
    if seed.size:
        return Problem(ProblemKind.MISSING_SEED, f"arm {arm!r} has no scores for seed {seeds.tolist()[seed[0]]!r}")
    hole = np.argwhere(count.sum(axis=2) == 0)
    if len(hole):
        s, r = hole[0]
        where = f"seed {seeds.tolist()[s]!r} lacks replicate {replicates.tolist()[r]!r}"
        return Problem(ProblemKind.MISSING_REPLICATE, f"arm {arm!r}: {where}, so seeds have different controls")
    twice = np.argwhere(count > 1)
    s, r, i = (twice if len(twice) else np.argwhere(count == 0))[0]
    where = f"arm {arm!r}, seed {seeds.tolist()[s]!r}, replicate {replicates.tolist()[r]!r}"
    if len(twice):
        return Problem(ProblemKind.DUPLICATE_ITEM, f"{where} scored item {items.tolist()[i]!r} {count[s, r, i]} times")
    missing = int((count == 0).sum())
    return Problem(
        ProblemKind.MISSING_ITEM, f"{where} lacks item {items.tolist()[i]!r} ({missing} scores missing in all)"
    )
