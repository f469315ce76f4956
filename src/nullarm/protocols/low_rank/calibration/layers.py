"""Statistics of inputs layer by layer, measured for some layers at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.slots import INPUTS, Group


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What groups of matrices read. The text is read once for so many layers, whose statistics are then held together.

    Attributes:
        model: A causal LM as it was loaded.
        batches: Token ids `[batch, position]` of the text.
        groups: The groups that will be asked for.
        at_once: Layers of one pass. What is found does not depend on it.
    """

    model: Any
    batches: Sequence[Tensor]
    groups: Collection[Group]
    at_once: int
    _held: dict[tuple[int, str], InputStatistics] = field(default_factory=dict, repr=False)

    def of(self, group: Group) -> InputStatistics:
        """What the matrices of a group read.

        Raises:
            ModelError: The matrices are not known to be at hand, or an input is not finite.
            DatasetError: There are no tokens.
        """
        key = (group.layer, INPUTS[group.slots[0]])
        if key not in self._held:
            self._held.clear()
            layers = sorted({other.layer for other in self.groups})
            first = layers.index(group.layer) // self.at_once * self.at_once
            inputs = {INPUTS[other.slots[0]] for other in self.groups}
            self._held.update(
                collect(self.model, self.batches, layers=layers[first : first + self.at_once], inputs=inputs)
            )
        return self._held[key]
