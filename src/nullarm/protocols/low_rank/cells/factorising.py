"""The work of one compressed arm: its ranks, its gauge, and its factors, some layers at a time."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from nullarm.protocols.base import CellContext
from nullarm.protocols.low_rank.allocation.allocate import Spectra, allocate
from nullarm.protocols.low_rank.allocation.settings import Allocation
from nullarm.protocols.low_rank.calibration.layers import LayerInputs
from nullarm.protocols.low_rank.cells.reading import calibration_batches, model_of
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.gauge import GaugeFit, Truncation, fit_gauge, gauged_factors, role_of
from nullarm.protocols.low_rank.gauge_settings import GaugeSettings
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.reconstruction import output_error, weight_error
from nullarm.protocols.low_rank.methods.rounding import round_to_nearest
from nullarm.protocols.low_rank.methods.settings import Method, RoundToNearest, WhitenedGrc
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.protocols.low_rank.slots import Group, groups, linear
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

    def weights(self, group: Group) -> tuple[Tensor, ...]:
        """The matrices of a group, `[out_i, in]` each."""
        return tuple(linear(self.model, group.layer, slot).weight.detach() for slot in group.slots)

    def layer(self, number: int) -> Compressed:
        """Factors of the groups of one layer."""
        pairs = zip(self.groups, self.ranks, strict=True)
        return {(g.layer, g.slots): self._factors(g, rank) for g, rank in pairs if g.layer == number}

    def rows(self, number: int, compressed: Compressed) -> list[dict[str, Any]]:
        """A row of table `groups` for each group of one layer."""
        return [self._row(g, compressed[g.layer, g.slots]) for g in self.groups if g.layer == number]

    def _factors(self, group: Group, rank: int) -> Factors | Rounded:
        """What takes the place of a group's matrices, in the model's dtype."""
        weights = self.weights(group)
        if isinstance(self.method, RoundToNearest):
            return round_to_nearest(weights[0], self.method.bits, self.method.block, slot=group.slots[0])
        if self.gauge is not None:
            basis, factors = gauged_factors(self.method, weights, rank, role_of(group.slots), self.gauge.g)
        else:
            inputs = None if self.method.needs == "nothing" else self.inputs.of(group)
            basis, factors = decompose(self.method, weights, inputs).truncate(rank)
        dtype = weights[0].dtype
        return Factors(group.slots, basis.to(dtype), tuple(factor.to(dtype) for factor in factors))

    @cached_property
    def inputs(self) -> LayerInputs:
        """What the groups read."""
        return LayerInputs(self.model, self.batches, self.groups, int(self.context.cell.settings["layers_at_once"]))

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
        return {
            (group.layer, group.slots): decompose(WhitenedGrc(), self.weights(group), self.inputs.of(group))
            .singular_values.cpu().numpy()
            for group in self.groups
        }  # fmt: skip

    def _row(self, group: Group, made: Factors | Rounded) -> dict[str, Any]:
        weights = self.weights(group)
        device, ranked = weights[0].device, isinstance(made, Factors)
        basis: Tensor | None = None
        if isinstance(made, Factors):
            basis, factors = made.basis.to(device), tuple(factor.to(device) for factor in made.weights)
        else:
            factors = (made.weight(torch.float32).to(device),)
        return {
            "layer": group.layer,
            "slots": "+".join(group.slots),
            "rank": made.rank if ranked else None,
            "break_even": group.break_even if ranked else None,
            "above_break_even": ranked and made.rank > group.break_even,
            "bytes": made.nbytes,
            "dense_bytes": sum(weight.nbytes for weight in weights),
            "weight_error": weight_error(weights, basis, factors),
            "output_error": output_error(weights, basis, factors, self.inputs.of(group)),
        }
