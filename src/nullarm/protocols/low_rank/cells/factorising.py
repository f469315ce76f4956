"""The work of one compressed arm: its ranks, its gauge, and its factors, some layers at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from nullarm.protocols.base import CellContext
from nullarm.protocols.low_rank.allocation.allocate import Spectra, allocate
from nullarm.protocols.low_rank.allocation.settings import Allocation
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.cells.reading import calibration_batches, layer_blocks, model_of
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.gauge import GaugeFit, Truncation, fit_gauge, gauged_factors, role_of
from nullarm.protocols.low_rank.gauge_settings import GaugeSettings
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.reconstruction import output_error, weight_error
from nullarm.protocols.low_rank.methods.rounding import round_to_nearest
from nullarm.protocols.low_rank.methods.settings import Method, RoundToNearest, WhitenedGrc
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.protocols.low_rank.slots import INPUTS, Group, groups, linear
from nullarm.protocols.low_rank.tables import VARIANCE


class Factorising:
    """What one arm asks for, and what it takes: model, text and ranks are found when they are first needed.

    Args:
        context: Of a cell of stage `compress`.

    Attributes:
        method: How matrices are made smaller.
        online: How bases are adapted afterwards, or None.
        layers: Numbers of the layers that have anything to compress.
    """

    def __init__(self, context: CellContext) -> None:
        said = context.cell.parameters["compression"]
        self.context = context
        self.method: Method = TypeAdapter(Method).validate_python(said["method"])
        self.online = OnlineSettings.model_validate(said["online"]) if said["online"] else None
        self._gauge_settings = GaugeSettings.model_validate(said["gauge"]) if said["gauge"] else None
        # Not validated again: said in full, it says what its kind does not read.
        self._allocation = Allocation.model_construct(**said["allocation"])
        self.groups = groups(context.cell.settings["model"], said["slots"], shared=self.method.shared)
        self.layers = sorted({group.layer for group in self.groups})

    @cached_property
    def model(self) -> Any:
        """The model as it is loaded."""
        return self._loaded[0]

    @cached_property
    def batches(self) -> list[Tensor]:
        """The calibration text, `[batch, window]` each."""
        return calibration_batches(self.context, self._loaded[1])

    @cached_property
    def gauge(self) -> GaugeFit | None:
        """The gauge of the residual stream, where the arm has one."""
        if self._gauge_settings is None:
            return None
        return GaugeFit.from_json(self.context.writer.json_chunk("gauge", partial(self._fit, self._gauge_settings)))

    @cached_property
    def ranks(self) -> list[int]:
        """One for each group; the full one of a matrix that is rounded."""
        found: list[int] = self.context.writer.json_chunk("ranks", self._allocate)
        return found

    def blocks(self) -> Iterator[Block]:
        """The groups, some layers at a time."""
        at_once = int(self.context.cell.settings["layers_at_once"])
        for number, layers in enumerate(layer_blocks(self.layers, at_once)):
            yield Block(self, number, layers)

    def weights(self, group: Group) -> tuple[Tensor, ...]:
        """The matrices of a group, `[out_i, in]` each."""
        return tuple(linear(self.model, group.layer, slot).weight.detach() for slot in group.slots)

    def factors(self, group: Group, rank: int, inputs: InputStatistics | None) -> Factors | Rounded:
        """What takes the place of a group's matrices, in the model's dtype.

        Args:
            group: Which.
            rank: Of the basis; not looked at where matrices are rounded.
            inputs: What the matrices read; None where the method need not know.
        """
        weights = self.weights(group)
        if isinstance(self.method, RoundToNearest):
            return round_to_nearest(weights[0], self.method.bits, self.method.block, slot=group.slots[0])
        if self.gauge is not None:
            basis, factors = gauged_factors(self.method, weights, rank, role_of(group.slots), self.gauge.g)
        else:
            basis, factors = decompose(self.method, weights, inputs).truncate(rank)
        dtype = weights[0].dtype
        return Factors(group.slots, basis.to(dtype), tuple(factor.to(dtype) for factor in factors))

    def inputs(self, layers: list[int]) -> dict[tuple[int, str], InputStatistics]:
        """Statistics of what the groups of some layers read."""
        names = {INPUTS[group.slots[0]] for group in self.groups}
        return collect(self.model, self.batches, layers=layers, inputs=names)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return model_of(self.context)

    def _fit(self, settings: GaugeSettings) -> dict[str, Any]:
        truncations = {g: Truncation(self.weights(g), rank) for g, rank in zip(self.groups, self.ranks, strict=True)}
        return fit_gauge(
            self.method,  # type: ignore[arg-type]  # rounding has no gauge, as the study file is told
            [t for g, t in truncations.items() if role_of(g.slots) == "reader"],
            [t for g, t in truncations.items() if role_of(g.slots) == "writer"],
            settings,
        ).to_json()

    def _allocate(self) -> list[int]:
        if isinstance(self.method, RoundToNearest):
            return [group.max_rank for group in self.groups]
        needs, cell = self.context.needs, self.context.cell
        return allocate(
            self._allocation, self.groups, int(cell.parameters["numbers"]),
            variance=needs["spectra"].table(VARIANCE)["variance"].to_pylist() if "spectra" in needs else None,
            spectra=self._whitened() if self._allocation.kind == "water_filling" else None,
            rng=np.random.default_rng([cell.seed, cell.replicate or 0]),
        )  # fmt: skip

    def _whitened(self) -> Spectra:
        """Singular values of what each group makes of its inputs."""
        found: dict[tuple[int, tuple[str, ...]], Any] = {}
        for layers in layer_blocks(self.layers, int(self.context.cell.settings["layers_at_once"])):
            inputs = self.inputs(layers)
            for group in self.groups:
                if group.layer in layers:
                    read = inputs[group.layer, INPUTS[group.slots[0]]]
                    whitened = decompose(WhitenedGrc(), self.weights(group), read)
                    found[group.layer, group.slots] = whitened.singular_values.cpu().numpy()
        return found


@dataclass
class Block:
    """The groups of some layers.

    Attributes:
        work: The arm's.
        number: Of the block, from 0.
        layers: Numbers of its layers.
    """

    work: Factorising
    number: int
    layers: list[int]

    @property
    def groups(self) -> dict[Group, int]:
        """Its groups, with their ranks."""
        pairs = zip(self.work.groups, self.work.ranks, strict=True)
        return {group: rank for group, rank in pairs if group.layer in self.layers}

    @cached_property
    def inputs(self) -> dict[tuple[int, str], InputStatistics]:
        """What its groups read."""
        return self.work.inputs(self.layers)

    def factors(self) -> Compressed:
        """Factors of its groups."""
        asks = self.work.method.needs != "nothing"
        return {
            (group.layer, group.slots): self.work.factors(group, rank, self._read(group) if asks else None)
            for group, rank in self.groups.items()
        }

    def rows(self, compressed: Compressed) -> list[dict[str, Any]]:
        """A row of table `groups` for each of its groups."""
        return [self._row(group, compressed[group.layer, group.slots]) for group in self.groups]

    def _read(self, group: Group) -> InputStatistics:
        return self.inputs[group.layer, INPUTS[group.slots[0]]]

    def _row(self, group: Group, made: Factors | Rounded) -> dict[str, Any]:
        weights = self.work.weights(group)
        device = weights[0].device
        basis: Tensor | None
        factors: tuple[Tensor, ...]
        if isinstance(made, Rounded):
            basis, factors = None, (made.weight(torch.float32).to(device),)
        else:
            basis, factors = made.basis.to(device), tuple(factor.to(device) for factor in made.weights)
        ranked = isinstance(made, Factors)
        return {
            "layer": group.layer,
            "slots": "+".join(group.slots),
            "rank": made.rank if ranked else None,
            "break_even": group.break_even if ranked else None,
            "above_break_even": ranked and made.rank > group.break_even,
            "bytes": made.nbytes,
            "dense_bytes": sum(weight.nbytes for weight in weights),
            "weight_error": weight_error(weights, basis, factors),
            "output_error": output_error(weights, basis, factors, self._read(group)),
        }
