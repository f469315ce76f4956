"""From one spectrum to one rank: the knobs of allocation."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nullarm.errors import StudyError
from nullarm.stats.spectrum import energy_rank

Rounding = Literal["up", "nearest", "down"]

# A product such as 10 · 1.1 may land a rounding error above a rung.
_SLACK = 1e-9


@dataclass(frozen=True)
class AllocationPolicy:
    """How a spectrum becomes a rank: k@energy · margin, rounded to the ladder, between min_rank and the probe's rank.

    Attributes:
        energy: Share of Σσ² that a module's rank must hold, in (0, 1].
        margin: Factor on k@energy.
        uniform_quantiles: Quantiles over modules of k@energy · margin, each giving a uniform arm (0.5: the median).
        min_rank: Least rank any module gets.
        allowed_ranks: The ladder. Ranks above the probe's are never given.
        rounding: To the next rung up, the nearest (the upper of two equally near) or the next down.
    """

    energy: float = 0.90
    margin: float = 1.0
    uniform_quantiles: tuple[float, ...] = (0.5, 0.9)
    min_rank: int = 1
    allowed_ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    rounding: Rounding = "up"

    def __post_init__(self) -> None:
        _require(0.0 < self.energy <= 1.0, "energy", self.energy, "a share in (0, 1]")
        _require(math.isfinite(self.margin) and self.margin > 0.0, "margin", self.margin, "a factor > 0")
        quantiles = self.uniform_quantiles
        _require(
            bool(quantiles) and all(0.0 <= q <= 1.0 for q in quantiles) and len(set(quantiles)) == len(quantiles),
            "uniform_quantiles",
            quantiles,
            "distinct quantiles in [0, 1], at least one",
        )
        _require(self.min_rank >= 1, "min_rank", self.min_rank, "an integer ≥ 1")
        ladder = self.allowed_ranks
        _require(
            bool(ladder) and ladder[0] >= 1 and list(ladder) == sorted(set(ladder)),
            "allowed_ranks",
            ladder,
            "ascending distinct ranks ≥ 1",
        )
        _require(self.rounding in ("up", "nearest", "down"), "rounding", self.rounding, "up, nearest, down")

    def to_json(self) -> dict[str, Any]:
        """The knobs as plain JSON values."""
        return {name: list(knob) if isinstance(knob, tuple) else knob for name, knob in asdict(self).items()}

    def wanted(self, singular_values: Sequence[float]) -> float:
        """k@energy · margin, before the ladder; 0 for a zero update."""
        return energy_rank(singular_values, self.energy) * self.margin

    def rung(self, wanted: float, cap: int) -> int:
        """The rank of the ladder for a wanted rank, between `min_rank` and `cap` (the probe's rank).

        Raises:
            StudyError: If no allowed rank lies between them.
        """
        ladder = [rank for rank in self.allowed_ranks if self.min_rank <= rank <= cap]
        if not ladder:
            raise StudyError(
                f"no allowed rank lies between min_rank {self.min_rank} and the probe's rank {cap}",
                value=self.allowed_ranks,
                valid="at least one allowed rank in that interval",
                next_command="change allocation.allowed_ranks, allocation.min_rank or the probe's rank in the study",
            )
        above = bisect.bisect_left(ladder, wanted * (1.0 - _SLACK))
        if above == len(ladder):
            return ladder[-1]
        if above == 0 or self.rounding == "up" or ladder[above] <= wanted:
            return ladder[above]
        below = ladder[above - 1]
        if self.rounding == "down":
            return below
        return below if wanted - below < ladder[above] - wanted else ladder[above]


def quantile_arm(quantile: float) -> str:
    """Name of the uniform arm of a quantile: `uniform_median`, `uniform_p90`, `uniform_p97.5`."""
    return "uniform_median" if quantile == 0.5 else f"uniform_p{100 * quantile:g}"


def _require(holds: bool, name: str, value: object, valid: str) -> None:
    if not holds:
        raise StudyError(
            f"allocation.{name} is unusable",
            value=value,
            valid=valid,
            next_command=f"set allocation.{name} in the study",
        )
