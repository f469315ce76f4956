"""The plan: exactly which cells a study needs, as a directed acyclic graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any

from nullarm.errors import StudyError
from nullarm.study.identity import cell_id, content_hash


@dataclass(frozen=True)
class Estimate:
    """What one cell is expected to take. `seconds` of wall time, `disk_bytes` kept after it ended."""

    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Cell:
    """One combination of arm × seed × slice at one stage of a protocol: the unit scheduled, harvested and paid for."""

    protocol: str
    """Name of the protocol."""
    version: int
    """Version of the protocol's code, as far as it changes results."""
    stage: str
    """Which step of the protocol this is (for example `probe`)."""
    parameters: Mapping[str, Any]
    """Everything that affects the result and is not said by another field; plain JSON data."""
    seed: int
    arm: str | None = None
    """The arm, or None for a stage that serves all arms."""
    replicate: int | None = None
    """Which draw of a replicated arm, from 1."""
    slice: str | None = None
    """Slice of the data, when a stage is cut up."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Content ids of models and data sets, by role."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Ids of the cells whose artefacts this one reads, by role."""
    smoke: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the cell also has to know but does not change its result (batch sizes, paths of models); not in the id."""
    exclusive: bool = False
    """Whether it must have the machine to itself, because it measures time; not in the id."""
    estimate: Estimate = field(default=Estimate(), compare=False)

    @cached_property
    def id(self) -> str:
        """Identity: equal ids ask the same question."""
        return cell_id(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The payload that the id hashes."""
        return {
            "protocol": self.protocol,
            "protocol_version": self.version,
            "stage": self.stage,
            "parameters": dict(self.parameters),
            "arm": self.arm,
            "replicate": self.replicate,
            "seed": self.seed,
            "slice": self.slice,
            "inputs": dict(self.inputs),
            "needs": dict(self.needs),
            "smoke": self.smoke,
        }

    @property
    def label(self) -> str:
        """Name for people: `seed 42 · shuffled 2`."""
        arm = self.arm or self.stage
        parts = [f"seed {self.seed}", f"{arm} {self.replicate}" if self.replicate else arm, self.slice]
        return " · ".join(p for p in parts if p)

    def to_json(self) -> dict[str, Any]:
        """The whole cell as plain data, the form of `cell.json`."""
        return {
            "id": self.id,
            "label": self.label,
            **self.identity,
            "settings": dict(self.settings),
            "exclusive": self.exclusive,
            "estimate": asdict(self.estimate),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Read back what `to_json` wrote."""
        names = (
            "protocol",
            "stage",
            "parameters",
            "seed",
            "arm",
            "replicate",
            "slice",
            "inputs",
            "needs",
            "smoke",
            "settings",
            "exclusive",
        )
        estimate = Estimate(**data["estimate"])
        return cls(version=data["protocol_version"], estimate=estimate, **{name: data[name] for name in names})


@dataclass(frozen=True)
class Plan:
    """Cells in an order in which each follows what it needs."""

    cells: tuple[Cell, ...]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def by_id(self) -> Mapping[str, Cell]:
        """Cells by id."""
        return {cell.id: cell for cell in self.cells}

    @cached_property
    def hash(self) -> str:
        """Hash over all cell ids: two plans with equal hashes ask for the same cells."""
        return content_hash(sorted(self.by_id))

    def closure(self, cell_ids: Iterable[str]) -> set[str]:
        """Ids of these cells and of all that they need, directly or not."""
        found: set[str] = set()
        frontier = list(cell_ids)
        while frontier:
            if (cell_id := frontier.pop()) not in found:
                found.add(cell_id)
                frontier += self.by_id[cell_id].needs.values()
        return found

    @property
    def disk_bytes(self) -> int:
        """Expected size of the finished study directory."""
        return sum(cell.estimate.disk_bytes for cell in self.cells)

    def wall_seconds(self, at_once: int) -> float:
        """Expected wall time with `at_once` cells running: greedy list scheduling along the dependencies.

        A cell that must have the machine to itself waits for all before it, and all after it wait for that.
        """
        ends: dict[str, float] = {}
        free = [0.0] * max(1, at_once)
        for cell in self.cells:
            ready = max((ends[n] for n in cell.needs.values() if n in ends), default=0.0)
            if cell.exclusive:
                ends[cell.id] = max(*free, ready) + cell.estimate.seconds
                free = [ends[cell.id]] * len(free)
                continue
            slot = min(range(len(free)), key=lambda i: max(free[i], ready))
            free[slot] = ends[cell.id] = max(free[slot], ready) + cell.estimate.seconds
        return max(ends.values(), default=0.0)


def make_plan(cells: Iterable[Cell]) -> Plan:
    """Order cells so that each follows what it needs, keeping the given order otherwise.

    Raises:
        StudyError: Two cells are the same question, a needed cell is not planned, or needs go in a circle.
    """
    by_id: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in by_id:
            raise StudyError(
                f"two cells of the plan ask the same question: {cell.label!r} and {by_id[cell.id].label!r}",
                next_command="make the arms differ, or remove one",
            )
        by_id[cell.id] = cell
    for cell in by_id.values():
        if missing := [role for role, need in cell.needs.items() if need not in by_id]:
            raise StudyError(f"cell {cell.label!r} needs {missing[0]!r}, which is not planned")
    return Plan(tuple(by_id[i] for i in _ordered({c.id: tuple(c.needs.values()) for c in by_id.values()})))


def _ordered(needs: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Keys of `needs`, each after what it needs, and otherwise as given."""
    position = {key: i for i, key in enumerate(needs)}
    sorter = TopologicalSorter(needs)
    try:
        sorter.prepare()
    except CycleError as error:
        raise StudyError("the needs of the cells go in a circle", value=error.args[1]) from error
    ready: list[tuple[int, str]] = []
    while sorter.is_active():
        for key in sorter.get_ready():
            heappush(ready, (position[key], key))
        _, first = heappop(ready)
        sorter.done(first)
        yield first
