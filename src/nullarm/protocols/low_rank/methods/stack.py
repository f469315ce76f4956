"""Matrices that read the same input, one above the other, brought to float64 a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PART = 1024
"""Rows or columns in float64 at once."""


@dataclass(frozen=True)
class Stack:
    """Matrices `[out_i, in]`, each times a scale; none of them is copied.

    Attributes:
        weights: The matrices.
        scales: One a matrix.
    """

    weights: Sequence[Tensor]
    scales: Sequence[float]

    @property
    def height(self) -> int:
        """Σ out."""
        return sum(len(weight) for weight in self.weights)

    @property
    def width(self) -> int:
        """Channels of the input."""
        return self.weights[0].shape[1]

    def rows(self) -> Iterator[Tensor]:
        """Some rows `[n, in]` at a time, in order."""
        for weight, scale in zip(self.weights, self.scales, strict=True):
            for part in torch.split(weight, PART):
                yield part.double() * scale

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Some columns `[Σ out, n]` at a time, with their places."""
        for start in range(0, self.width, PART):
            at = slice(start, start + PART)
            parts = zip(self.weights, self.scales, strict=True)
            yield at, torch.cat([weight[:, at].double() * scale for weight, scale in parts])

    def gram(self) -> Tensor:
        """WᵀW `[in, in]`, float64."""
        total = self.weights[0].new_zeros(self.width, self.width, dtype=torch.float64)
        for part in self.rows():
            total += part.T @ part
        return total
