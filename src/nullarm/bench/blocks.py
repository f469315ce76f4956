"""Which runs come in which order: drawn once from a generator, and from then on a function of what was run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nullarm.bench.runs import Arm, Phase, Run, State
from nullarm.bench.settings import BenchSettings

_ABBA: tuple[Arm, ...] = ("treatment", "control", "control", "treatment")
_BAAB: tuple[Arm, ...] = ("control", "treatment", "treatment", "control")
_BLOCKED: tuple[Arm, ...] = ("control",) * 4 + ("treatment",) * 4

Subject = Literal["treatment", "control", "slowed"]


@dataclass(frozen=True)
class Block:
    """Runs that follow each other, so that both arms see the same weather; a slow drift cancels in ABBA."""

    phase: Phase
    index: int
    arms: tuple[Arm, ...]

    def subject(self, arm: Arm) -> Subject:
        """Who stands in for an arm in this phase."""
        if arm == "control" or self.phase == "again":
            return "control"
        return "slowed" if self.phase == "slowed" else "treatment"


def schedule(settings: BenchSettings, rng: np.random.Generator) -> tuple[Block, ...]:
    """All blocks in their order: phases mixed at random over the session, so that they see the same weather."""
    if settings.procedure == "blocked":
        return (Block("contrast", 0, _BLOCKED),)
    counts = (settings.blocks, settings.again_blocks, settings.slowed_blocks)
    places: list[tuple[Phase, int]] = [
        (phase, index) for phase, n in zip(get_args(Phase), counts, strict=True) for index in range(n)
    ]
    order = [places[i] for i in rng.permutation(len(places))]
    first = rng.integers(2, size=len(places)).tolist()
    return tuple(Block(phase, i, (_ABBA, _BAAB)[coin]) for (phase, i), coin in zip(order, first, strict=True))


def attempts(runs: Iterable[Run]) -> dict[tuple[Phase, int], dict[int, list[Run]]]:
    """Runs by block and attempt."""
    found: dict[tuple[Phase, int], dict[int, list[Run]]] = {}
    for run in runs:
        found.setdefault((run.phase, run.block), {}).setdefault(run.attempt, []).append(run)
    return found


def due(blocks: Sequence[Block], runs: Iterable[Run], retries: int) -> list[tuple[Block, int]]:
    """What is still to be run, as block and attempt; the first of it is next.

    A contaminated block is run again when all others had their turn: at once, it would meet the same weather.
    """
    tried = attempts(runs)
    found = []
    for block in blocks:
        mine = tried.get((block.phase, block.index), {})
        if not mine or (len(mine) <= retries and _contaminated(mine[len(mine)])):
            found.append((block, len(mine) + 1))
    return sorted(found, key=lambda next_try: next_try[1])


def judged(runs: Iterable[Run]) -> list[Run]:
    """The runs that may enter a verdict: of each block the last attempt, where that is not contaminated."""
    last = (mine[max(mine)] for mine in attempts(runs).values())
    return [run for attempt in last if not _contaminated(attempt) for run in attempt]


def _contaminated(runs: Iterable[Run]) -> bool:
    return any(run.state is State.CONTAMINATED for run in runs)
