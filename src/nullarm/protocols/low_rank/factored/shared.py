"""Linear layers over one basis: what they share is computed at the first call and handed to the others.

Attention calls q, k and v one after the other with the same tensor. The first call computes P x and one product for all
of them; the others take their part of it, and with the last one nothing is kept. A part is handed out only while the
input and the weights are the very tensors they were, unchanged by torch's version counters, and while gradients are
off; otherwise it is computed anew, alone. What nobody asks for goes when its input does.

A compiled graph has no version counters, so there the input's identity has to do: of the known architectures none
changes the input between these calls. A change behind torch's back (`x.data`) is seen nowhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullarm.protocols.low_rank.factored.factors import Factors
from nullarm.protocols.low_rank.factored.linear import constant

Stamp = tuple[int, ...]
"""Where tensors lie and how often they were changed."""


@dataclass(frozen=True, eq=False)
class _Held:
    """What is left of one product.

    Attributes:
        input: Gives the tensor the product was computed from, while there is one.
        stamp: Of input and weights, at that time.
        parts: `[..., out_i]` by number of the layer that did not ask yet.
    """

    input: Callable[[], Tensor | None]
    stamp: Stamp
    parts: dict[int, Tensor]


class SharedBasis(nn.Module):
    """The matrices of several linear layers with one input: y_i = weight_i · (basis · x) + bias_i.

    Args:
        factors: Of these matrices.
        replaced: The layers, whose biases, device and dtype it takes.

    Attributes:
        basis: `[rank, in]`.
        weight: `[sum of out, rank]`, one matrix after the other.
        bias: `[sum of out]`, or None where no layer has one.
        sizes: Rows of each matrix.
    """

    def __init__(self, factors: Factors, replaced: Sequence[nn.Linear]) -> None:
        super().__init__()
        like = replaced[0].weight
        self.basis = constant(factors.basis, like)
        self.weight = constant(torch.cat(factors.weights), like)
        self.sizes = [weight.shape[0] for weight in factors.weights]
        biases = [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias.detach() for x in replaced]
        self.bias = None if all(x.bias is None for x in replaced) else constant(torch.cat(biases), like)
        self._held: _Held | None = None

    def part(self, x: Tensor, index: int) -> Tensor:
        """The output of one layer, `[..., out_index]`."""
        stamp = self._stamp(x)
        if stamp is None:
            return self._alone(x, index)
        held = self._held
        if held is None or held.input() is not x or held.stamp != stamp or index not in held.parts:
            held = _hold(x, stamp, self._all(x))
        found = held.parts.pop(index)
        self._held = held if held.parts else None
        return found

    def rows(self, index: int) -> slice:
        """Where the matrix of one layer lies in `weight`."""
        start = sum(self.sizes[:index])
        return slice(start, start + self.sizes[index])

    def _all(self, x: Tensor) -> Sequence[Tensor]:
        return torch.split(F.linear(F.linear(x, self.basis), self.weight, self.bias), self.sizes, dim=-1)

    def _alone(self, x: Tensor, index: int) -> Tensor:
        rows = self.rows(index)
        bias = None if self.bias is None else self.bias[rows]
        return F.linear(F.linear(x, self.basis), self.weight[rows], bias)

    def _stamp(self, x: Tensor) -> Stamp | None:
        """None where a product may not be shared: it has a gradient, or its tensors do not count their changes."""
        if torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():
            return ()
        weights = [self.basis, self.weight] if self.bias is None else [self.basis, self.weight, self.bias]
        if x.is_inference() or any(weight.is_inference() for weight in weights):
            return None
        return (x._version, *(number for weight in weights for number in (weight.data_ptr(), weight._version)))

    def __getstate__(self) -> dict[str, object]:
        """A copy starts with nothing held."""
        return {**self.__dict__, "_held": None}


class SharedLinear(nn.Module):
    """One of the layers over a shared basis.

    Args:
        shared: All of them.
        index: Which of them.
    """

    shared: SharedBasis

    def __init__(self, shared: SharedBasis, index: int) -> None:
        super().__init__()
        self.index = index
        if index == 0:
            self.shared = shared
        else:  # not as a submodule: the first layer has it, and each tensor is listed once
            self.__dict__["shared"] = shared

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., in]` to `[..., out]`."""
        return self.shared.part(x, self.index)

    def extra_repr(self) -> str:
        """Shape and rank."""
        rank, columns = self.shared.basis.shape
        bias = self.shared.bias is not None
        return f"in_features={columns}, out_features={self.shared.sizes[self.index]}, rank={rank}, bias={bias}"

    @property
    def weight_tensors(self) -> tuple[Tensor, ...]:
        """The basis, and this layer's rows of the weight."""
        return self.shared.basis, self.shared.weight[self.shared.rows(self.index)]


def _hold(x: Tensor, stamp: Stamp, outputs: Sequence[Tensor]) -> _Held:
    parts = dict(enumerate(outputs))
    if torch.compiler.is_compiling():  # weak references have no place in a graph
        return _Held(lambda: x, stamp, parts)
    return _Held(weakref.ref(x, lambda _: parts.clear()), stamp, parts)
