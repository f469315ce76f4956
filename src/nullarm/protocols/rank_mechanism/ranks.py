"""Rank maps: which rank each target module gets, complete or refused, and the parameters it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nullarm.errors import InvalidResult

RankMap = dict[str, int]
"""{module: rank} for *every* target module. A module left out would train at PEFT's default rank."""


@dataclass(frozen=True, order=True)
class ModuleShape:
    """A target module and the shape of its weight (out × in)."""

    name: str
    in_features: int
    out_features: int

    @property
    def stratum(self) -> tuple[int, int]:
        """(in, out): modules of one stratum can exchange ranks without changing the parameter count."""
        return self.in_features, self.out_features

    @property
    def cost(self) -> int:
        """LoRA parameters per unit of rank."""
        return self.in_features + self.out_features


def lora_parameters(rank_map: Mapping[str, int], shapes: Sequence[ModuleShape]) -> int:
    """Σ r · (in + out) over all target modules.

    Raises:
        InvalidResult: If the map is not complete.
    """
    check_complete("the rank map", rank_map, shapes)
    return sum(rank_map[shape.name] * shape.cost for shape in shapes)


def strata(shapes: Sequence[ModuleShape]) -> list[tuple[ModuleShape, ...]]:
    """Modules grouped by equal (in, out): groups in order of shape, modules in the order given."""
    groups: dict[tuple[int, int], list[ModuleShape]] = {}
    for shape in shapes:
        groups.setdefault(shape.stratum, []).append(shape)
    return [tuple(groups[key]) for key in sorted(groups)]


def check_complete(what: str, table: Mapping[str, object], shapes: Sequence[ModuleShape]) -> None:
    """Refuse a table that does not name exactly the target modules.

    Raises:
        InvalidResult: Naming the modules left out, or those that are no targets.
    """
    targets = {shape.name for shape in shapes}
    if not targets or len(targets) != len(shapes):
        raise InvalidResult(
            "the target modules are not distinct" if targets else "there are no target modules",
            value=[shape.name for shape in shapes][:5],
            valid="at least one module, each named once",
            next_command="check target_modules of the study",
        )
    wrong = sorted(targets ^ table.keys())
    if wrong:
        verb = "leaves out" if wrong[0] in targets else "names, beyond the targets,"
        raise InvalidResult(
            f"{what} {verb} {len(wrong)} module(s), which would not get the rank it says",
            value=wrong[:3],
            valid=f"exactly the {len(targets)} target modules",
            next_command="audit an adapter with the same target_modules as the study",
        )
