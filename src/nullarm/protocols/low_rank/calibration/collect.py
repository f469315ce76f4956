"""Statistics of what the matrices of chosen layers read, while a model reads a text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.errors import DatasetError, ModelError
from nullarm.models.anatomy import anatomy
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics, InputSums
from nullarm.protocols.low_rank.slots import INPUTS, SLOTS, linear

READERS = {INPUTS[slot]: slot for slot in reversed(SLOTS)}
"""The first slot that reads each input; what it reads, the others read."""


def collect(
    model: Any, batches: Sequence[Tensor], *, layers: Sequence[int], inputs: Collection[str]
) -> dict[tuple[int, str], InputStatistics]:
    """Statistics of inputs, by layer and name of the input.

    Every layer that is asked for takes memory for a matrix per input (see `InputSums`); the text is read once.

    Args:
        model: A causal LM in evaluation mode.
        batches: Token ids `[batch, position]`, without padding.
        layers: Numbers of blocks.
        inputs: Names among the values of `slots.INPUTS`.

    Raises:
        ModelError: The matrices are not known to be at hand, there is no such layer, or an input is not finite.
        DatasetError: There are no tokens.
    """
    tokens = _tokens(batches)
    readers = {(layer, name): linear(model, layer, READERS[name]) for layer in layers for name in inputs}
    sums = {key: InputSums(reader, tokens) for key, reader in readers.items()}
    with ExitStack() as hooks:
        for key, reader in readers.items():
            hooks.enter_context(reader.register_forward_pre_hook(_into(sums[key])))
        read(model, batches)
    found = {key: total.finish() for key, total in sums.items()}
    for (layer, name), statistics in found.items():
        _refuse_infinite(statistics, layer, name)
    return found


def hidden_variance(model: Any, batches: Sequence[Tensor]) -> Tensor:
    """Variance over tokens and channels of what each block gives out, `[layers]`, float64, on the CPU.

    Args:
        model: A causal LM in evaluation mode.
        batches: Token ids `[batch, position]`, without padding.

    Raises:
        ModelError: The model's parts are not known.
        DatasetError: There are no tokens.
    """
    _tokens(batches)
    blocks = anatomy(model).blocks
    sums = [_Moments() for _ in blocks]
    with ExitStack() as hooks:
        for block, moments in zip(blocks, sums, strict=True):
            hooks.enter_context(block.register_forward_hook(moments.hook))
        read(model, batches)
    return torch.stack([moments.variance().cpu() for moments in sums])


def read(model: Any, batches: Sequence[Tensor]) -> None:
    """Run the blocks, without head, cache and gradient, over token ids `[batch, position]`."""
    trunk = anatomy(model).trunk
    with torch.no_grad():
        for ids in batches:
            trunk(input_ids=ids.to(model.device), use_cache=False)


def _tokens(batches: Sequence[Tensor]) -> int:
    tokens = sum(ids.numel() for ids in batches)
    if not tokens:
        raise DatasetError("there is no text to calibrate on", value=0, valid="one window at least")
    return tokens


def _into(sums: InputSums) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, inputs: sums.add(inputs[0])


class _Moments:
    """Sums of h and h² in float64, and how many there were."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def hook(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hidden = (output if isinstance(output, Tensor) else output[0]).double()
        self.count += hidden.numel()
        self.first = self.first.to(hidden) + hidden.sum()
        self.second = self.second.to(hidden) + hidden.square().sum()

    def variance(self) -> Tensor:
        return self.second / self.count - (self.first / self.count).square()


def _refuse_infinite(statistics: InputStatistics, layer: int, name: str) -> None:
    finite = statistics.mean_abs.isfinite()
    if not finite.all():
        raise ModelError(
            f"what the matrices of layer {layer} read ({name}) is not finite",
            value=f"{int((~finite).sum())} channels",
            valid="a dtype with the range of the model's activations: bfloat16 or float32",
        )
