"""Norms, angles and differences of residuals, and the effects of the embedding × body factorial.

Shapes: L blocks, N positions, d width. Residuals are [L + 1, N, d], layer −1 first, of any dtype; they are read in fp32
one layer at a time, so that no second copy of them all is made. Squares are put together in fp64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nullarm.errors import ModelError


def run_metrics(stream: Tensor) -> dict[str, Tensor]:
    """Metrics of one run, see `tables.RUN_METRICS`.

    Args:
        stream: [L + 1, N, d].

    Returns:
        `norm` [L + 1, N]; `norm_delta` and `cosine_prev` [L, N], from layer 0 on, as nothing is below layer −1.
    """
    norm = _by_layer(_norm, stream)
    return {"norm": norm, "norm_delta": norm.diff(dim=0), "cosine_prev": _by_layer(_cosine, stream[:-1], stream[1:])}


def pair_metrics(left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Metrics of a comparison, see `tables.PAIR_METRICS`.

    Args:
        left: [L + 1, N, d].
        right: [L + 1, N, d].

    Returns:
        `cosine`, `norm_diff` and `relative_diff` [L + 1, N]. A change of a zero vector is 1 relative to it.

    Raises:
        ModelError: The widths differ.
    """
    _require_common_space("cosine, norm_diff, relative_diff", left, right)
    distance, length = norm_diff(left, right), _by_layer(_norm, left)
    relative = torch.where(length > 0, distance / length, (distance > 0).float())
    return {"cosine": _by_layer(_cosine, left, right), "norm_diff": distance, "relative_diff": relative}


def norm_diff(left: Tensor, right: Tensor) -> Tensor:
    """‖right − left‖₂ [L + 1, N].

    Raises:
        ModelError: The widths differ.
    """
    _require_common_space("norm_diff", left, right)
    return _by_layer(lambda a, b: _norm(b.float() - a.float()), left, right)


def factorial(bb: Tensor, bs: Tensor, sb: Tensor, ss: Tensor) -> dict[str, Tensor]:
    """Effects and their shares, see `tables.FACTORIAL_METRICS`; first letter the embedding, second the body.

    Args:
        bb: [L + 1, N, d], as the others.
        bs: Base embedding, fine-tuned body.
        sb: Fine-tuned embedding, base body.
        ss: Both fine-tuned.

    Returns:
        Six metrics [L + 1, N]. Shares add up to 1, and are NaN where all effects are 0.

    Raises:
        ModelError: The widths differ.
    """
    for other in (bs, sb, ss):
        _require_common_space("embedding_effect, body_effect, interaction", bb, other)
    effects = _by_layer(_effects, bb, bs, sb, ss)
    squares = effects.square()
    shares = squares / squares.sum(1, keepdim=True)
    names = ("embedding", "body", "interaction")
    effect_names = ("embedding_effect", "body_effect", "interaction")
    return {
        **dict(zip(effect_names, effects.unbind(1), strict=True)),
        **{f"{name}_share": share for name, share in zip(names, shares.unbind(1), strict=True)},
    }


def _effects(bb: Tensor, bs: Tensor, sb: Tensor, ss: Tensor) -> Tensor:
    """[3, N] norms of the main effects of embedding and body, and of the interaction."""
    bb, bs, sb, ss = (x.float() for x in (bb, bs, sb, ss))
    embedding_in_base_body, embedding_in_sft_body = sb - bb, ss - bs
    embedding = (embedding_in_base_body + embedding_in_sft_body) / 2
    body = ((bs - bb) + (ss - sb)) / 2
    interaction = (embedding_in_sft_body - embedding_in_base_body) / 2
    return torch.stack([_norm(effect) for effect in (embedding, body, interaction)])


def _norm(x: Tensor) -> Tensor:
    return _dot(x, x).sqrt()


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine [N]; 1 of two zero vectors, which are the same, and 0 of a zero vector with another.

    √(x·x · x·x) is x·x exactly, so that a vector has cosine 1 with itself; with others rounding could put it beyond.
    """
    xx, yy = _dot(x, x), _dot(y, y)
    cosine = (_dot(x, y) / (xx * yy).sqrt()).clamp(-1, 1)
    return torch.where((xx > 0) & (yy > 0), cosine, (xx == yy).double())


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() * y.float()).sum(-1).double()


def _by_layer(function: Callable[..., Tensor], *streams: Tensor) -> Tensor:
    """What the function makes of each layer, in fp32."""
    return torch.stack([function(*layers).float() for layers in zip(*streams, strict=True)])


def _require_common_space(metrics: str, left: Tensor, right: Tensor) -> None:
    if left.shape[-1] != right.shape[-1]:
        raise ModelError(
            f"{metrics}: the residuals have no common space",
            value=f"widths {left.shape[-1]} and {right.shape[-1]}",
            valid="models of one width; cka compares any",
        )
