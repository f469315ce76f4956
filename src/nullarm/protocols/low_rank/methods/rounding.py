"""Rounding to the nearest of a few whole numbers times a scale: the comparator of low rank at equal bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nullarm.protocols.low_rank.factored.factors import Rounded


def round_to_nearest(weight: Tensor, bits: int, block: int, *, slot: str) -> Rounded:
    """Codes round(w / scale), scale = max |w| / qmax of the block, up to the next fp16, qmax = 2^(bits − 1) − 1.

    As no scale is too small, no number is off by more than half of it.

    Args:
        weight: `[out, in]`.
        bits: 8 or 4.
        block: Numbers of a row that share a scale.
        slot: Name of the matrix.
    """
    largest, (out, width) = 2 ** (bits - 1) - 1, weight.shape
    blocks = pad(weight.detach().float(), (0, -width % block)).view(out, -1, block)
    steps = blocks.abs().amax(-1) / largest
    scales = steps.to(torch.float16)
    scales = (scales.view(torch.int16) + (scales.float() < steps)).view(torch.float16)
    codes = (blocks / scales.float()[..., None]).nan_to_num(0).round()
    return Rounded.pack(slot, codes.view(out, -1)[:, :width].to(torch.int8), scales, bits=bits, block=block)
