"""Sums over the inputs of one linear layer, from chunks of tokens, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

CHUNK = 2048
"""Tokens that are brought to fp32 at once."""
LARGEST_GRAM = 8192
"""Widest input whose [in, in] matrix is held although the output is narrower; 512 MiB in fp64."""
SAMPLE = 1024
"""Tokens that are kept as they are, at most."""


@dataclass(frozen=True)
class InputStatistics:
    """What one or several linear layers read, over a number of tokens.

    Attributes:
        tokens: How many vectors were read.
        gram: XᵀX `[in, in]`, float64, X `[tokens, in]` being the inputs; None where it would be too large.
        output_gram: W XᵀX Wᵀ `[out, out]`, float64, of the only layer that reads them, where there is no `gram`.
        mean_abs: Mean |x| of each channel `[in]`, float64.
        sample: Inputs `[n, in]`, fp32, of up to 1024 tokens at equal distances from the first to the last.
    """

    tokens: int
    gram: Tensor | None
    output_gram: Tensor | None
    mean_abs: Tensor
    sample: Tensor


class InputSums:
    """Takes inputs as they come. Products are made in fp32 and added up in float64.

    Holds the Gram matrix of the inputs where `in` ≤ `out` or `in` ≤ `LARGEST_GRAM`, else that of the outputs, which is
    smaller: never an `[in, in]` matrix then.

    Args:
        layer: Reads the inputs; its bias does not count.
        tokens: How many vectors will come.
    """

    def __init__(self, layer: nn.Linear, tokens: int) -> None:
        wide = layer.in_features > max(layer.out_features, LARGEST_GRAM)
        side = layer.out_features if wide else layer.in_features
        self._through = layer.weight.detach() if wide else None
        new = layer.weight.new_zeros
        self._gram = new(side, side, dtype=torch.float64)
        self._abs = new(layer.in_features, dtype=torch.float64)
        self._kept = torch.linspace(0, tokens - 1, min(tokens, SAMPLE), dtype=torch.float64).round().long()
        self._sample = new(len(self._kept), layer.in_features, dtype=torch.float32)
        self._seen = 0

    def add(self, inputs: Tensor) -> None:
        """Count inputs `[…, in]`, in the order of the tokens."""
        for x in torch.split(inputs.detach().flatten(0, -2), CHUNK):
            self._add(x.float())

    def finish(self) -> InputStatistics:
        """What has been counted so far."""
        wide = self._through is not None
        return InputStatistics(
            tokens=self._seen,
            gram=None if wide else self._gram,
            output_gram=self._gram if wide else None,
            mean_abs=self._abs / self._seen,
            sample=self._sample,
        )

    def _add(self, x: Tensor) -> None:
        first, last = torch.searchsorted(self._kept, torch.tensor([self._seen, self._seen + len(x)])).tolist()
        self._sample[first:last] = x[(self._kept[first:last] - self._seen).to(x.device)]
        self._abs += x.abs().sum(0, dtype=torch.float64)
        read = x if self._through is None else linear(x, self._through.float())
        self._gram += read.T @ read
        self._seen += len(x)
