"""A design, and whether it can show anything at all. Refused at plan time, before any money is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nullarm.errors import StudyError
from nullarm.stats.randomisation import EXACT_LIMIT, arrangement_count, least_attainable_p

TestName = Literal["within_seed_randomisation", "paired_t", "paired_items", "paired_blocks"]
TESTS: tuple[str, ...] = get_args(TestName)
COUNTED_WHEN_MEASURED = ("paired_items", "paired_blocks")
"""Tests whose units are not seeds: how many there will be is not known before they are measured."""


@dataclass(frozen=True)
class Design:
    """How a contrast is measured and tested.

    Attributes:
        seeds: Independent seeds, S.
        controls: Controls per seed, K.
        alpha: Level of each one-sided claim.
        test: The test that carries the level. `paired_items` takes items (or their clusters) for its units,
            `paired_blocks` the blocks of a timing session.
        draws: Random arrangements where they are too many to enumerate.
        family: Contrasts corrected together by Holm; the strictest of them faces α / family.
    """

    seeds: int
    controls: int = 1
    alpha: float = 0.05
    test: TestName = "within_seed_randomisation"
    draws: int = 9_999
    family: int = 1

    @property
    def step_alpha(self) -> float:
        """α / family, the level at Holm's first and strictest step."""
        return self.alpha / self.family

    @property
    def level(self) -> float:
        """Level of the interval that goes with a one-sided test at α."""
        return 1 - 2 * self.alpha

    @property
    def least_p(self) -> float:
        """The smallest p-value the test can give; a t-test has no floor."""
        if self.test != "within_seed_randomisation":
            return 0.0
        return least_attainable_p(self.seeds, self.controls, self.draws)

    def fault(self) -> str | None:
        """Why this design can show nothing, in one sentence; None when it can."""
        if self.test not in TESTS:
            return f"the test {self.test!r} is unknown; valid: {', '.join(TESTS)}"
        if not 0 < self.alpha < 0.5 or self.family < 1:
            return f"α = {self.alpha:g} over a family of {self.family} is not a level; α lies between 0 and 0.5"
        if self.test in COUNTED_WHEN_MEASURED:
            return None
        if self.seeds < 2 or self.controls < 1:
            return (
                f"{self.seeds} seed(s) with {self.controls} control(s) each: "
                "a verdict over seeds needs at least 2 seeds and 1 control"
            )
        return None if self.least_p < self.step_alpha else self._out_of_reach()

    def _out_of_reach(self) -> str:
        count = arrangement_count(self.seeds, self.controls)
        how = f"1/{count}" if count <= EXACT_LIMIT else f"1/(1 + {self.draws} draws)"
        level = f"α = {self.alpha:g}" + (f" / {self.family} contrasts" if self.family > 1 else "")
        return (
            f"{self.seeds} seeds with {self.controls} control(s) each cannot give a p below {self.least_p:.4g} "
            f"(= {how}), so {level} is out of reach"
        )


def check_design(design: Design) -> None:
    """Refuse a design that cannot reach its level.

    Raises:
        StudyError: The design's fault, and what would mend it.
    """
    fault = design.fault()
    if fault is not None:
        raise StudyError(f"the design can show nothing: {fault}", valid=_remedy(design))


def _remedy(design: Design) -> str:
    seeds = next(
        (s for s in range(max(2, design.seeds), 1_000) if _with(design, s, max(1, design.controls)).fault() is None),
        None,
    )
    controls = next(
        (k for k in range(max(1, design.controls), 1_000) if _with(design, max(2, design.seeds), k).fault() is None),
        None,
    )
    if seeds is None or controls is None:
        return "a test by name, 0 < α < 0.5, and 1/(1 + draws) below it"
    return f"{seeds} seeds with {max(1, design.controls)} control(s), or {max(2, design.seeds)} seeds with {controls}"


def _with(design: Design, seeds: int, controls: int) -> Design:
    return Design(seeds, controls, design.alpha, design.test, design.draws, design.family)
