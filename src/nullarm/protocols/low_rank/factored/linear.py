"""Linear layers that keep one compressed matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullarm.protocols.low_rank.factored.factors import Factors, Rounded


def constant(tensor: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter of its own, without gradient, on the device and in the dtype of `like`."""
    return nn.Parameter(tensor.detach().to(like, copy=True).contiguous(), requires_grad=False)


class FactoredLinear(nn.Module):
    """y = weight · (basis · x) + bias.

    Args:
        factors: Of one matrix.
        replaced: The layer that it stands in for, whose bias, device and dtype it takes.
    """

    def __init__(self, factors: Factors, replaced: nn.Linear) -> None:
        super().__init__()
        (weight,) = factors.weights
        self.basis, self.weight = constant(factors.basis, replaced.weight), constant(weight, replaced.weight)
        self.bias = None if replaced.bias is None else constant(replaced.bias, replaced.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., in]` to `[..., out]`."""
        return F.linear(F.linear(x, self.basis), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Shape and rank."""
        (out, rank), columns = self.weight.shape, self.basis.shape[1]
        return f"in_features={columns}, out_features={out}, rank={rank}, bias={self.bias is not None}"

    @property
    def weight_tensors(self) -> tuple[Tensor, ...]:
        """Basis and weight."""
        return self.basis, self.weight


class RoundedLinear(nn.Module):
    """y = (codes · scales) · x + bias; the matrix is made anew, in the dtype of x, at each call.

    Args:
        rounded: The matrix.
        replaced: The layer that it stands in for, whose bias and device it takes.
    """

    codes: Tensor
    scale_bits: Tensor

    def __init__(self, rounded: Rounded, replaced: nn.Linear) -> None:
        super().__init__()
        self.bits, self.block, self.shape = rounded.bits, rounded.block, rounded.shape
        device = replaced.weight.device
        self.register_buffer("codes", rounded.codes.to(device, copy=True))
        # As integers, so that `.to(dtype)` of the model does not round the scales.
        self.register_buffer("scale_bits", rounded.scales.to(device, copy=True).view(torch.int16))
        self.bias = None if replaced.bias is None else constant(replaced.bias, replaced.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., in]` to `[..., out]`."""
        scales = self.scale_bits.view(torch.float16)
        matrix = Rounded((), self.codes, scales, self.bits, self.block, self.shape)
        return F.linear(x, matrix.weight(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Shape and precision."""
        out, columns = self.shape
        bias = self.bias is not None
        return f"in_features={columns}, out_features={out}, bits={self.bits}, block={self.block}, bias={bias}"

    @property
    def weight_tensors(self) -> tuple[Tensor, ...]:
        """Codes and scales."""
        return self.codes, self.scale_bits
