"""What cells take of a machine: 2N a token of every model that is loaded, and the weights' way to the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nullarm.errors import ModelError
from nullarm.models.facts import parameter_count
from nullarm.models.tasks.base import Task
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.sites.devices import Device
from nullarm.study.plan import Estimate

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BYTES_PER_ITEM = 120
"""Of a row in the per-item table, compressed."""
LOAD_BYTES_PER_S = 1e9
"""Weights from disk to device."""
TRAINING = 6.0
"""FLOPs a parameter and token of a training step, instead of 2: both models forward, then back through the receiver's
last tokens and the fuser."""


@dataclass(frozen=True)
class Estimates:
    """Estimates of a study's cells.

    Attributes:
        device: Where they run.
        dtype: Of all models.
        batch_size: Items of a forward pass.
    """

    device: Device
    dtype: str
    batch_size: int

    def of(self, refs: Iterable[str], task: Task, items: float, *, flops: float = 2.0, written: int = 0) -> Estimate:
        """Of a cell that puts items through models; without a model's shape there is no telling.

        Args:
            refs: References of the models that it loads.
            task: Where the items are from.
            items: How many.
            flops: A parameter and token.
            written: Tokens that an item takes to write, each a pass of its batch.
        """
        refs, disk = list(refs), int(items * BYTES_PER_ITEM)
        try:
            sizes = [parameter_count(ref) for ref in refs]
            cache = sum(2 * (g := Geometry.of_reference(ref)).layers * g.width for ref in refs)
        except ModelError:
            return Estimate(disk_bytes=disk)
        number, length = BYTES[self.dtype], task.tokens_per_item
        return Estimate(
            seconds=sum(sizes) * number / LOAD_BYTES_PER_S
            + items * (flops * length + 2 * written) * sum(sizes) / self.device.flops_per_s
            + items / self.batch_size * (len(refs) + written) * self.device.step_overhead_s,
            disk_bytes=disk,
            memory_bytes=number * (sum(sizes) + 3 * cache * self.batch_size * length),
        )
