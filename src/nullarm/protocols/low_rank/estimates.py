"""What cells of a compression study take of a machine, from the model's size and the tokens it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nullarm.bench.settings import BenchSettings
from nullarm.errors import ModelError
from nullarm.models.facts import parameter_count, shape_facts
from nullarm.models.texts.factory import make_text
from nullarm.protocols.low_rank.parameters import LowRankParameters, Speculation, Sweep
from nullarm.protocols.low_rank.sizes import BYTES, Sizes
from nullarm.protocols.low_rank.slots import INPUTS, SLOTS, Group, groups
from nullarm.sites.devices import Device
from nullarm.study.plan import Estimate

LOAD_BYTES_PER_S = 1e9
"""Weights from disk to device."""
EIGH_FLOPS = 25.0
"""Of an eigendecomposition in float64, times n³, at a tenth of the device's speed: it is made of small steps."""
WIDEST_GRAM = 8192
"""Of an input's Gram matrix; that of wider ones' outputs is smaller."""
SAMPLED_INPUTS = 1024
"""Whose outputs are compared where an input is wider than that."""
LAYER_LAUNCH_S = 0.0006
"""Of a layer in a step of decoding, however small: the kernels' launches, on a CPU and on a GPU without graphs."""
MEMORY_BYTES_PER_S = 1e12
"""At which a GPU reads weights."""
BYTES_PER_ROW = 60
"""Of a table, compressed."""


@dataclass(frozen=True)
class Estimates:
    """Estimates of a study's cells.

    Attributes:
        parameters: The study's.
        device: Where they run.
    """

    parameters: LowRankParameters
    device: Device

    def spectra(self) -> Estimate:
        """One pass over the calibration text, two decompositions of each matrix."""
        found = groups(self.parameters.model, SLOTS, shared=False)
        rows = sum(2 * group.max_rank for group in found)
        return self._of(self._calibrating(found) + 2 * self._decomposing(found), disk=rows * 10, statistics=found)

    def compress(self, sizes: Sizes, name: str) -> Estimate:
        """The same with one decomposition, but for a gauge, an allocation and a stream that take as much again.

        All factors are held in main memory until they are handed on.
        """
        arm = self.parameters.compression[name]
        found = sizes.groups(arm)
        seconds = self._calibrating(found) + self._decomposing(found) + self._comparing(found)
        more = [arm.gauge, arm.allocation.kind == "water_filling" or None, arm.online]
        times = 1 + sum(one is not None for one in more)
        factors = sizes.bytes(name)
        return self._of(times * seconds, disk=factors, statistics=found, held=factors)

    def evaluate(self) -> Estimate:
        """One pass over the evaluation text."""
        windows = self._evaluation_tokens / (self.parameters.stride or self.parameters.window)
        return self._of(self._reading(windows * self.parameters.window), disk=int(windows * BYTES_PER_ROW))

    def sweep(self, sizes: Sizes, sweep: Sweep) -> Estimate:
        """Per matrix one decomposition, and per rank some windows."""
        found = groups(self.parameters.model, sweep.slots, shared=False)
        looks = len(found) * len(sweep.keep)
        reading = self._reading(looks * sweep.windows * self.parameters.window)
        working = self._decomposing(found) + len(sweep.keep) * self._comparing(found)
        seconds = self._calibrating(found) + working + reading
        return self._of(seconds, disk=looks * BYTES_PER_ROW, statistics=found)

    def speculate(self, speculation: Speculation) -> Estimate:
        """Prompts one by one: rounds of drafting and verifying, and, where both are greedy, the verifier alone."""
        times = 1.5 if speculation.temperature else 2.5
        return self._of(times * self._decoding(speculation.prompts * speculation.new_tokens))

    def measure(self, bench: BenchSettings) -> Estimate:
        """Runs of a session, without those that are held again."""
        runs = 4 * (bench.blocks + bench.again_blocks + bench.slowed_blocks)
        return self._of(self._decoding(runs * bench.tokens) + runs * 0.1, disk=runs * 200)

    def _of(self, seconds: float, *, disk: int = 0, statistics: Sequence[Group] = (), held: int = 0) -> Estimate:
        weights = self._parameters * BYTES[self.parameters.dtype]
        return Estimate(
            seconds=weights / LOAD_BYTES_PER_S + seconds,
            disk_bytes=disk,
            memory_bytes=weights + self._statistics_bytes(statistics) + held,
        )

    def _statistics_bytes(self, found: Sequence[Group]) -> int:
        """Of what the matrices of some layers read: for each input, a Gram matrix of its smaller side in float64."""
        sides = {(group.layer, INPUTS[group.slots[0]]): min(group.in_features, WIDEST_GRAM) for group in found}
        layers = len({layer for layer, _ in sides})
        held = min(layers, self.parameters.layers_at_once)
        return 8 * held * sum(side**2 for side in sides.values()) // max(1, layers)

    @cached_property
    def _parameters(self) -> int:
        try:
            return parameter_count(self.parameters.model)
        except ModelError:
            return 0

    @cached_property
    def _evaluation_tokens(self) -> int:
        there = make_text(self.parameters.text).tokens_per_split("test")
        return min(there, self.parameters.evaluation_tokens or there)

    def _reading(self, tokens: float) -> float:
        passes = tokens / (self.parameters.window * self.parameters.batch_size)
        return 2 * self._parameters * tokens / self.device.flops_per_s + passes * self.device.step_overhead_s

    def _calibrating(self, found: Sequence[Group]) -> float:
        layers = len({group.layer for group in found})
        return -(-layers // self.parameters.layers_at_once) * self._reading(self.parameters.calibration_tokens)

    def _decomposing(self, found: Sequence[Group]) -> float:
        cubes = sum(group.max_rank**3 for group in found)
        return 10 * EIGH_FLOPS * cubes / self.device.fp64_flops_per_s

    def _comparing(self, found: Sequence[Group]) -> float:
        """Output errors at one rank: the matrices and what is lost of them, each times the inputs, in float64."""
        flops = 0
        for group in found:
            inputs = group.in_features if group.in_features <= WIDEST_GRAM else SAMPLED_INPUTS
            flops += 4 * inputs * group.dense_numbers
        return flops / self.device.fp64_flops_per_s

    def _decoding(self, tokens: float) -> float:
        """Token by token, limited by the launch of kernels or by reading the weights."""
        reading = self._parameters * BYTES[self.parameters.dtype] / MEMORY_BYTES_PER_S
        return tokens * max(LAYER_LAUNCH_S * shape_facts(self.parameters.model).layers, reading)
