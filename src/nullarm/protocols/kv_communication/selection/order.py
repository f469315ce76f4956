"""Which tokens are sent when not all are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, isnan
from typing import TYPE_CHECKING

from nullarm.errors import InvalidResult

if TYPE_CHECKING:
    import numpy as np

    from nullarm.protocols.kv_communication.parameters import Order

TINY = 1e-9
"""0.29 × 100 is 29 tokens, though in floating point it is a little less."""


def choose(
    order: Order,
    proportion: float,
    candidates: Sequence[int],
    *,
    scores: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Which of the tokens that could be fused are.

    ⌊proportion · n⌋ of the n candidates, at least one: of a candidate, one is left even at a small proportion.

    Args:
        order: `front`, `back`, `middle` (as many left out before as behind, or one fewer before), `random`, or the name
            of a score, whatever it is: those of highest score, the later of two that are equal.
        proportion: Share of the candidates, in (0, 1].
        candidates: Receiver positions that have a sharer token, ascending.
        scores: Of each candidate, in their order; for orders by score.
        rng: For `random`: of this item alone, so that batch and chunk do not matter. With the same generator, a smaller
            proportion's tokens are among a larger one's.

    Returns:
        The chosen positions, ascending; none of no candidates.

    Raises:
        InvalidResult: A score is not a number.
        ValueError: `scores` or `rng` is missing, or there is not one score for each candidate.
    """
    n = len(candidates)
    kept = min(n, max(1, floor(proportion * n + TINY)))
    return sorted(candidates[place] for place in _places(order, n, kept, scores, rng))


def _places(
    order: Order, n: int, kept: int, scores: Sequence[float] | None, rng: np.random.Generator | None
) -> Iterable[int]:
    if order == "front":
        return range(kept)
    if order == "back":
        return range(n - kept, n)
    if order == "middle":
        before = (n - kept) // 2
        return range(before, before + kept)
    if order == "random":
        if rng is None:
            raise ValueError("order random draws from a generator, and there is none")
        drawn: list[int] = rng.permutation(n)[:kept].tolist()
        return drawn
    if scores is None or len(scores) != n:
        raise ValueError(f"order {order} needs one score for each of {n} candidates")
    return _highest(scores, kept)


def _highest(scores: Sequence[float], kept: int) -> list[int]:
    if any(map(isnan, scores)):
        raise InvalidResult("a token's score is not a number", value=list(scores), valid="numbers")
    best_first = sorted(range(len(scores)), key=lambda place: (scores[place], place), reverse=True)
    return best_first[:kept]
