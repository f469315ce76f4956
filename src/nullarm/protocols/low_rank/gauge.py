"""A diagonal gauge of the residual stream: g > 0 `[d]`, found by iteration and baked into factors.

In the coordinates x / g, a matrix that reads the stream is W diag(g), one that writes to it diag(1/g) W; the model
computes the same. What a truncation loses is not the same: it is W diag(g) that is truncated, and undone afterwards.
The gauge is moved downhill on the sum of the squared errors in gauged coordinates, Σ_i a_i + b_i, with a_i the energy
that truncation leaves out of column i of the readers and b_i out of row i of the writers. At fixed truncations a_i goes
with g_i² and b_i with g_i⁻², so Newton's step of log g_i is −(a_i − b_i) / (2 (a_i + b_i)). It is within ± ½ (the
source's clamp to that is never reached, and left out) and falls short of the minimum.

A common scale of all g changes no factor. So g has a geometric mean of 1, and the sum is taken at the scale at which it
is least, where both sides are equal: E = 2 √(Σa · Σb). (The source compares the sides as they are.)

What this promises is little. E counts errors in units that g itself sets, so that its fall is no gain by itself, and it
has no minimum: it falls on as g divides the channels into some that readers see and others that writers reach, ever
more sharply. The source bounds each step alone; here `largest` bounds g, and decides where it ends. For one matrix, no
gauge has a smaller error of weights than g = 1 (Eckart and Young 1936). Whether a model computes better with it is for
a measurement to say. With readers alone, as where only q, k and v are compressed, b = 0, all steps are equal, and with
a geometric mean of 1 none is left: g = 1 to the bit, the arm is inert, and its treatment hash says NO_OP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nullarm.errors import StudyError
from nullarm.protocols.low_rank.gauge_settings import GaugeSettings
from nullarm.protocols.low_rank.methods.decompose import Truncated, decompose
from nullarm.protocols.low_rank.methods.settings import Grc, LowRank, Svd
from nullarm.protocols.low_rank.methods.stack import Stack

Role = Literal["reader", "writer"]

WRITERS = ("o", "down")
"""Slots whose output is added to the residual stream; all others read it."""
ROUNDING = 1e-12
"""Share of a channel's energy below which what is left of it is rounding."""
LARGEST_STEP = 0.35
"""Of log g in one iteration, after the mean is removed (the source's)."""
SWEEPS = 2
"""Power steps by which a basis follows the gauge. At d = 4096 and rank 1024 one takes some 5e10 operations, all of them
in products and QR; a decomposition takes some 1e12, half of them memory-bound."""


@dataclass(frozen=True)
class Truncation:
    """Matrices that will share one basis.

    Attributes:
        weights: Each `[out_i, d]` for readers, `[d, in_i]` for writers.
        rank: Of the basis.
    """

    weights: tuple[Tensor, ...]
    rank: int


@dataclass(frozen=True)
class GaugeFit:
    """A gauge, and how it was found.

    Attributes:
        g: `[d]`, float64, of geometric mean 1.
        history: E at g = 1 and after each iteration.
        iterations: Steps that were taken.
        moved: Largest |log g|.
    """

    g: Tensor
    history: tuple[float, ...]
    iterations: int
    moved: float

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists, to the bit: `g`, `energy` (E at g = 1 and after each iteration), `moved`."""
        return {"g": self.g.tolist(), "energy": list(self.history), "moved": self.moved}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GaugeFit:
        """What `to_json` was made of, on the CPU."""
        energy = tuple(data["energy"])
        return cls(torch.tensor(data["g"], dtype=torch.float64), energy, len(energy) - 1, data["moved"])


def role_of(slots: Sequence[str]) -> Role:
    """What the matrices of a group do with the residual stream."""
    return "writer" if slots[0] in WRITERS else "reader"


def fit_gauge(
    method: LowRank, readers: Sequence[Truncation], writers: Sequence[Truncation], settings: GaugeSettings
) -> GaugeFit:
    """A gauge at which E is less than at g = 1, if there is one: downhill, until it moves no more, or E does not fall.

    For grc with normalised matrices, energies are relative to each matrix's squared norm at g = 1. Each group takes a
    decomposition once, and memory for `[d, d]` and `[d, rank]` numbers in float64 on the device of its weights: some
    170 MB at d = 4096 and rank 1024.

    Args:
        method: grc or svd.
        readers: Groups that read the residual stream.
        writers: Groups that write to it.
        settings: When to stop.

    Raises:
        StudyError: The method has no gauge.
    """
    _refuse_without_gauge(method)
    normalised = isinstance(method, Grc) and method.normalised
    reading = [_Tail(_gram(group.weights, normalised), group.rank) for group in readers]
    writing = [_Tail(_gram([w.T for w in group.weights], normalised), group.rank) for group in writers]
    device, width = (reading or writing)[0].gram.device, len((reading or writing)[0].gram)
    log_g = torch.zeros(width, dtype=torch.float64, device=device)

    def energies() -> tuple[Tensor, Tensor]:
        a = sum((tail.energies(log_g.exp()) for tail in reading), torch.zeros_like(log_g))
        b = sum((tail.energies((-log_g).exp()) for tail in writing), torch.zeros_like(log_g))
        return a, b

    a, b = energies()
    history = [_total(a, b)]
    for _ in range(settings.iterations if settings.fitted else 0):
        moved = _bounded(log_g + _step(a, b), settings.largest)
        if (moved - log_g).abs().max() < settings.tolerance:
            break
        before, log_g = log_g, moved
        a, b = energies()
        if _total(a, b) >= history[-1]:
            log_g = before
            break
        history.append(_total(a, b))
    return GaugeFit(log_g.exp(), tuple(history), len(history) - 1, float(log_g.abs().max()))


def gauged_factors(method: LowRank, weights: Sequence[Tensor], rank: int, role: Role, g: Tensor) -> Truncated:
    """Factors, for the model as it is, of a truncation in gauged coordinates.

    At g = 1 they are to the bit those of `decompose`. Elsewhere a reader's basis has no orthonormal rows.

    Args:
        method: grc or svd.
        weights: Of one group, each `[out_i, in]`.
        rank: Of the basis.
        role: Which side of them is the residual stream's.
        g: `[d]`.

    Returns:
        Basis `[rank, in]` and factors `[out_i, rank]`, in fp32, or in float64 where the weights are.

    Raises:
        StudyError: The method has no gauge.
        UsageError: There is no such rank.
    """
    _refuse_without_gauge(method)
    # in fp32 at least, as factors are: a product in bf16 would round the weights first
    exact = [weight.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    scale = g.to(exact[0])
    if role == "reader":
        basis, factors = decompose(method, [weight * scale for weight in exact], None).truncate(rank)
        return basis / scale, factors
    basis, factors = decompose(method, [weight / scale[:, None] for weight in exact], None).truncate(rank)
    return basis, tuple(factor * scale[:, None] for factor in factors)


class _Tail:
    """What a truncation leaves out of a group, as the gauge moves."""

    def __init__(self, gram: Tensor, rank: int) -> None:
        self.gram = gram
        self.basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:]

    def energies(self, scale: Tensor) -> Tensor:
        """Squared norm `[d]` of what is left along each channel; first the basis follows the new scale."""
        gram = scale[:, None] * self.gram * scale
        for _ in range(SWEEPS):
            self.basis = torch.linalg.qr(gram @ self.basis).Q
        seen = gram @ self.basis
        # the diagonal of (1 − Π) K (1 − Π), Π the projector on the basis
        kept = 2 * seen - self.basis @ (self.basis.T @ seen)
        left = gram.diagonal() - (self.basis * kept).sum(dim=1)
        return torch.where(left > ROUNDING * gram.diagonal(), left, 0.0)


def _gram(matrices: Sequence[Tensor], normalised: bool) -> Tensor:
    """Σ MᵀM `[d, d]` over matrices `[n_i, d]`, float64, each divided by its squared norm where `normalised`."""
    total = matrices[0].new_zeros(matrices[0].shape[1], matrices[0].shape[1], dtype=torch.float64)
    for matrix in matrices:
        gram = Stack([matrix.detach()], [1.0]).gram()
        total += gram / gram.trace() if normalised else gram
    return total


def _total(a: Tensor, b: Tensor) -> float:
    """E; where nothing is left out on one side, the other's energy."""
    reading, writing = float(a.sum()), float(b.sum())
    return 2 * (reading * writing) ** 0.5 if reading and writing else reading + writing


def _step(a: Tensor, b: Tensor) -> Tensor:
    """The change of log g, of mean 0; none for a channel of which nothing is left out on either side."""
    tiny = torch.finfo(a.dtype).tiny
    a, b = (side / side.sum().clamp_min(tiny) for side in (a, b))
    newton = torch.where(a + b > 0, -(a - b) / (2 * (a + b)), torch.nan)
    return (newton - newton.nanmean()).clamp(-LARGEST_STEP, LARGEST_STEP).nan_to_num(nan=0.0)


def _bounded(log_g: Tensor, largest: float) -> Tensor:
    """Of mean 0, drawn in until none is larger."""
    centred = log_g - log_g.mean()
    return centred * (largest / centred.abs().max()).clamp_max(1.0)


def _refuse_without_gauge(method: LowRank) -> None:
    if not isinstance(method, Grc | Svd):
        raise StudyError(
            f"method {method.kind!r} has no gauge: it weighs channels by itself, or truncates nothing",
            valid=["grc", "svd"], next_command="remove `gauge` from this arm",
        )  # fmt: skip
