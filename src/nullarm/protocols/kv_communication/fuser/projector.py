"""One C2C projector: from a layer's K/V of sharer and receiver, the receiver's new K/V (arXiv 2510.03215).

Parameters, buffer and constructor arguments have the names of the published checkpoints. The two halves, keys and
values, share nothing but the temperature. For each half, with x = FFN(Linear([source, target])) per token:

    output = target + gate · sigmoid(Linear(FFN(x))) · Linear(FFN(x))

where the sigmoid is a weight per head, and the FFNs of the two paths are different ones. The gate is one logit per half
and starts at 0. In training it is sigmoid((logit + noise) / τ) with logistic noise, in evaluation logit > 0: a
projector fresh from its constructor is therefore closed in evaluation, and changes nothing. A logit that requires no
gradient is fixed, and its gate the same in training as in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.geometry import HALVES, Half

KV = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `[batch, heads, tokens, head_dim]`."""

SourceKV = tuple[Tensor | None, Tensor | None]
"""As `KV`, with None for a half that was not sent because every gate it goes through is closed."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

_LEAST = {"source_dim": 1, "target_dim": 1, "source_num_heads": 1, "target_num_heads": 1, "hidden_dim": 1,
          "intermediate_dim": 1, "num_layers": 3, "anneal_steps": 1}  # fmt: skip


class FeedForwardBlock(nn.Module):
    """x + Dropout(W2 · GELU(W1 · RMSNorm(x))), without biases; `[…, width]` to the same."""

    def __init__(self, width: int, inner_width: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, dtype=dtype)
        self.w1 = nn.Linear(width, inner_width, bias=False, dtype=dtype)
        self.w2 = nn.Linear(inner_width, width, bias=False, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        # The kernel works in fp32 inside. The weight follows x, which autocast makes bf16 while parameters stay fp32.
        norm = self.norm
        normed = functional.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)
        update: Tensor = self.dropout(self.w2(functional.gelu(self.w1(normed))))
        return x + update


class FeedForward(nn.Module):
    """Feed-forward blocks one after the other."""

    def __init__(self, width: int, inner_width: int, depth: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FeedForwardBlock(width, inner_width, dropout, dtype) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        for block in self.blocks:
            x = block(x)
        return x


class C2CProjector(nn.Module):
    """One projector, in the published form. Tokens of source and target correspond one to one.

    Args:
        source_dim: Size of a head of the sharer.
        target_dim: Size of a head of the receiver.
        source_num_heads: Key/value heads of the sharer.
        target_num_heads: Key/value heads of the receiver.
        hidden_dim: Width inside.
        intermediate_dim: Inner width of the feed-forward blocks, those of the weights excepted (hidden_dim).
        num_layers: Layers of the projection's path, with the shared one and the last; from 3.
        dropout: Of the feed-forward blocks, in training.
        initial_temperature: τ of the training gate at step 0.
        final_temperature: τ from step `anneal_steps` on.
        anneal_steps: Optimiser steps over which τ falls exponentially.
        dtype: Of the weights and the arithmetic, as such or by name.
        zero_init: Start from the identity: the projection's last layer is 0, so that the output is the target whatever
            the gate. Not among the published arguments, and not saved.

    Raises:
        ModelError: An argument is out of its range.
    """

    gate_temperature: Tensor

    def __init__(
        self,
        source_dim: int,
        target_dim: int,
        source_num_heads: int = 1,
        target_num_heads: int = 1,
        *,
        hidden_dim: int = 1024,
        intermediate_dim: int = 1024,
        num_layers: int = 3,
        dropout: float = 0.1,
        initial_temperature: float = 1.0,
        final_temperature: float = 0.001,
        anneal_steps: int = 1929,
        dtype: torch.dtype | str = torch.float32,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self._init_args: dict[str, Any] = {
            "source_dim": source_dim,
            "target_dim": target_dim,
            "source_num_heads": source_num_heads,
            "target_num_heads": target_num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "num_layers": num_layers,
            "dropout": dropout,
            "initial_temperature": initial_temperature,
            "final_temperature": final_temperature,
            "anneal_steps": anneal_steps,
            "dtype": str(dtype).removeprefix("torch."),
        }
        _check(self._init_args)
        self.source_shape, self.target_shape = (source_num_heads, source_dim), (target_num_heads, target_dim)
        weights_dtype = DTYPES[self._init_args["dtype"]]
        for half in HALVES:
            for name, part in self._parts(weights_dtype).items():
                self.add_module(f"{half}_{name}", part)
            self.register_parameter(f"{half}_gate_logit", nn.Parameter(torch.zeros((), dtype=weights_dtype)))
            if zero_init:
                for parameter in self.get_submodule(f"{half}_proj_out").parameters():
                    nn.init.zeros_(parameter)
        self.register_buffer("gate_temperature", torch.tensor(initial_temperature, dtype=weights_dtype))

    def _parts(self, dtype: torch.dtype) -> dict[str, nn.Module]:
        """The modules of a half, by their published names."""
        hidden, inner = self._init_args["hidden_dim"], self._init_args["intermediate_dim"]
        depth, dropout = self._init_args["num_layers"] - 2, self._init_args["dropout"]
        (source_heads, source_dim), (heads, dim) = self.source_shape, self.target_shape
        return {
            "in": nn.Linear(source_heads * source_dim + heads * dim, hidden, dtype=dtype),
            "mlp1": FeedForward(hidden, inner, 1, dropout, dtype),
            "scalar_mlp2": FeedForward(hidden, hidden, 1, dropout, dtype),
            "scalar_head": nn.Linear(hidden, heads, dtype=dtype),
            "proj_mlp2": FeedForward(hidden, inner, depth, dropout, dtype),
            "proj_out": nn.Linear(hidden, heads * dim, dtype=dtype),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the arithmetic."""
        return self.get_parameter("key_in.weight").dtype

    @property
    def init_args(self) -> dict[str, Any]:
        """The published constructor arguments that make a projector of this shape."""
        return {**self._init_args, "dtype": str(self.dtype).removeprefix("torch.")}

    def gate_logit(self, half: Half) -> Tensor:
        """The logit of a half's gate, a scalar."""
        return self.get_parameter(f"{half}_gate_logit")

    def fix_gate(self, half: Half) -> None:
        """Train the gate of a half no longer; where it is closed, nothing else of the half either."""
        logit = self.gate_logit(half).requires_grad_(False)
        if not logit > 0:
            for name, parameter in self.named_parameters():
                if name.startswith(f"{half}_"):
                    parameter.requires_grad_(False)

    def is_noisy(self, half: Half) -> bool:
        """Whether the gate of a half is being trained, and so neither open nor closed."""
        return self.training and self.gate_logit(half).requires_grad

    def set_step(self, step: int) -> None:
        """Set τ to what it is after `step` optimiser steps: initial · (final / initial)^min(step / anneal_steps, 1)."""
        args = self._init_args
        initial, progress = args["initial_temperature"], min(step / args["anneal_steps"], 1.0)
        self.gate_temperature.fill_(initial * (args["final_temperature"] / initial) ** progress)

    def forward(self, source: SourceKV, target: KV) -> KV:
        """Fuse both halves; one whose gate is closed in evaluation is the target's own tensor, and nothing is computed.

        Args:
            source: Keys and values of the sharer, `[batch, heads, tokens, head_dim]` of its geometry; a half behind a
                closed gate may be None.
            target: Those of the receiver, in its own geometry.

        Returns:
            New keys and values, in the target's shape and dtype.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        (are_open,) = open_halves([self])
        key, value = (
            self.fuse_half(half, own, into, onto=into) if half in are_open else into
            for half, own, into in zip(HALVES, source, target, strict=True)
        )
        return key, value

    def fuse_half(self, half: Half, source: Tensor | None, target: Tensor, *, onto: Tensor) -> Tensor:
        """`onto` + gate · weight · projection of one half, with a gate that is not noisy taken as open.

        Args:
            half: Which.
            source: `[batch, source heads, tokens, source head_dim]`.
            target: `[batch, target heads, tokens, target head_dim]`.
            onto: What the change is added to, shaped as the target: the target itself, or a sum so far.

        Returns:
            Shape and dtype of `onto`.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        source = self._checked(half, source, target)
        x = torch.cat([_flat(source), _flat(target)], dim=-1).to(self.dtype)
        x = self._apply_part(half, "mlp1", self._apply_part(half, "in", x))
        scores = self._apply_part(half, "scalar_head", self._apply_part(half, "scalar_mlp2", x))
        weight = torch.sigmoid(scores).transpose(1, 2)[..., None]  # [batch, heads, tokens, 1]
        if self.is_noisy(half):
            weight = weight * self._noisy_gate(half, weight.shape).to(weight.dtype)
        projection = self._apply_part(half, "proj_out", self._apply_part(half, "proj_mlp2", x))
        change = projection.view(*projection.shape[:2], *self.target_shape).transpose(1, 2)
        return torch.addcmul(onto, weight, change).to(onto.dtype)  # product and sum in fp32, rounded once

    def _apply_part(self, half: Half, name: str, x: Tensor) -> Tensor:
        result: Tensor = getattr(self, f"{half}_{name}")(x)
        return result

    def _noisy_gate(self, half: Half, shape: torch.Size) -> Tensor:
        """σ((logit + g) / τ) in fp32, with g logistic: the difference of two Gumbels, and so symmetric about 0."""
        noise = torch.logit(torch.rand(shape, device=self.gate_temperature.device))
        return torch.sigmoid((self.gate_logit(half).float() + noise) / self.gate_temperature.float())

    def _checked(self, half: Half, source: Tensor | None, target: Tensor) -> Tensor:
        """The source, when it and the target have the shapes this projector is for."""
        batch, _, tokens, _ = target.shape
        for side, found, (heads, dim) in (("source", source, self.source_shape), ("target", target, self.target_shape)):
            if found is None or found.shape != (batch, heads, tokens, dim):
                raise ModelError(
                    f"the {half} of the {side} does not fit this projector",
                    value="nothing" if found is None else tuple(found.shape),
                    valid=[(batch, heads, tokens, dim)],
                )
        assert source is not None
        return source


def open_halves(projectors: Sequence[C2CProjector]) -> list[tuple[Half, ...]]:
    """Of each projector, the halves that change anything in its present mode; a gate in training counts.

    All gates are read at once, since each reading waits for the device.
    """
    halves = [(projector, half) for projector in projectors for half in HALVES]
    noisy = [projector.is_noisy(half) for projector, half in halves]
    if all(noisy):
        return [HALVES] * len(projectors)
    logits = torch.stack([projector.gate_logit(half).detach() for projector, half in halves])
    is_open = [a or b for a, b in zip(noisy, (logits > 0).tolist(), strict=True)]
    return [tuple(compress(HALVES, pair)) for pair in zip(is_open[::2], is_open[1::2], strict=True)]


def _flat(kv: Tensor) -> Tensor:
    """`[batch, heads, tokens, head_dim]` as `[batch, tokens, heads · head_dim]`."""
    return kv.transpose(1, 2).flatten(2)


def _check(init_args: Mapping[str, Any]) -> None:
    for name, least in _LEAST.items():
        value = init_args[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= least, name, value, f"a whole number from {least}")
    _require(_in_range(init_args["dropout"], 0, 1, from_low=True), "dropout", init_args["dropout"], "from 0 to below 1")
    for name in ("initial_temperature", "final_temperature"):
        _require(_in_range(init_args[name], 0, float("inf")), name, init_args[name], "a number above 0")
    _require(init_args["dtype"] in DTYPES, "dtype", init_args["dtype"], ", ".join(DTYPES))


def _in_range(value: Any, low: float, high: float, *, from_low: bool = False) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and (low < value < high or (from_low and value == low))


def _require(good: bool, name: str, value: object, valid: str) -> None:
    if not good:
        raise ModelError(f"{name} of a projector is unusable", value=value, valid=valid)
