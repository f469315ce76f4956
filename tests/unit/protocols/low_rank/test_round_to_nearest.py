"""Rounding: half a step at most, the published formula, and blocks that are nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullarm.protocols.low_rank.methods.rounding import round_to_nearest


@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([8, 4]),
    block=st.integers(2, 70),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-7, 1e-4, 1e-2, 1.0, 1e3]),
)
@settings(max_examples=200, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(seed: int, bits: int, block: int, width: int, scale: float) -> None:
    weight = scale * torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    rounded = round_to_nearest(weight, bits, block, slot="q")
    steps = rounded.scales.float().repeat_interleave(block, dim=1)[:, :width]
    assert rounded.shape == (3, width)
    assert ((rounded.weight(torch.float32) - weight).abs() <= steps * (0.5 + 1e-5)).all()


def test_an_example_by_hand() -> None:
    rounded = round_to_nearest(torch.tensor([[127.0, -63.4, 0.6, -254.0]]), 8, 2, slot="down")
    assert rounded.slots == ("down",)
    assert rounded.scales.tolist() == [[1.0, 2.0]]
    assert rounded.codes.tolist() == [[127, -63, 0, -127]]


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: int) -> None:
    weight = torch.zeros(2, 8)
    weight[1, 4:] = torch.tensor([1e-9, 0, -1e-9, 0])  # far less than the least scale in fp16
    assert torch.equal(round_to_nearest(weight, bits, 4, slot="q").weight(torch.float32), torch.zeros(2, 8))


def test_more_bits_lose_less() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    error = {
        bits: (round_to_nearest(weight, bits, 64, slot="q").weight(torch.float32) - weight).norm() for bits in (8, 4)
    }
    assert error[8] * 10 < error[4] < 0.15 * weight.norm()


def test_what_is_no_number_stays_visible() -> None:
    weight = torch.tensor([[1.0, float("nan"), 2.0, 3.0]])
    rounded = round_to_nearest(weight, 8, 2, slot="q").weight(torch.float32)
    assert rounded[0, :2].isnan().all()
    assert rounded[0, 2:].isfinite().all()
