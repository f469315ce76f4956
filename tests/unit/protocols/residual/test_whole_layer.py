from typing import Any

import numpy as np
import pytest
import residual_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.protocols.residual.capture.whole_layer import (
    LayerNumbers,
    bootstrap_layers,
    direction_consistency,
    effective_rank,
    linear_cka,
    mean_difference,
    trajectory,
)
from nullarm.protocols.residual.runs import Comparison

PAIR = Comparison("base-sft", "base", "sft")
PROMPTS = np.repeat([4, 9, 2, 7, 5, 11], [3, 9, 5, 5, 6, 2])
M, RESAMPLES = len(PROMPTS), 150


def rows(width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(M, width, generator=generator) * torch.arange(1, width + 1) + 3


def numbers(left: Tensor, right: Tensor, prompts: Any = PROMPTS, seed: int = 0) -> LayerNumbers:
    rng = np.random.default_rng(seed)
    return bootstrap_layers({"base": left, "sft": right}, prompts, [PAIR], rng, RESAMPLES)


def moved(draws: list[float], value: float) -> tuple[float, float]:
    centred = np.array(draws) - np.mean(draws) + value
    low, high = np.percentile(centred, [2.5, 97.5])
    return float(low), float(high)


def resampled_rows(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Rows of every resample, and the prompt of each, a prompt drawn twice counting as two."""
    known = sorted(set(PROMPTS.tolist()))
    counts = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), size=RESAMPLES)
    found = []
    for drawn in counts:
        chosen, which = [], []
        for prompt, times in zip(known, drawn.tolist(), strict=True):
            for again in range(times):
                own = np.flatnonzero(prompt == PROMPTS).tolist()
                chosen += own
                which += [100 * prompt + again] * len(own)
        found.append((chosen, which))
    return found


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("other", [8, 64, 20])
def test_cka_is_that_of_the_formula(width: int, other: int) -> None:
    x, y = rows(width), rows(other, seed=1)
    assert linear_cka(x, y) == pytest.approx(reference.linear_cka(x, y), abs=1e-9)
    found = numbers(x, y).metrics["pair", "base-sft"]["cka"]
    assert found[0] == pytest.approx(reference.linear_cka(x, y), abs=1e-9)


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_effective_rank_is_that_of_the_formula(width: int, dtype: torch.dtype) -> None:
    x = rows(width).to(dtype)
    assert effective_rank(x) == pytest.approx(reference.effective_rank(x), rel=1e-6)
    found = numbers(x, x).metrics["run", "base"]["effective_rank"]
    assert found[0] == pytest.approx(reference.effective_rank(x), rel=1e-6)


def test_effective_rank_counts_equal_directions() -> None:
    signs = torch.tensor([[1.0, 1, 1, -1, -1, -1, 1, -1], [1, -1, 1, 1, -1, 1, -1, -1]])
    assert effective_rank(signs[:1].T @ torch.randn(1, 5)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.eye(12)) == pytest.approx(11, rel=1e-5)


def test_mean_difference_and_consistency_are_those_of_the_formula() -> None:
    left, right = rows(), rows(seed=1) + 0.5
    torch.testing.assert_close(mean_difference(left, right).double(), reference.mean_difference(left, right))
    expected = reference.direction_consistency(left, right, PROMPTS.tolist())
    assert direction_consistency(left, right, PROMPTS) == pytest.approx(expected, abs=1e-6)
    found = numbers(left, right)
    length = reference.norm(reference.mean_difference(left, right))
    assert found.metrics["pair", "base-sft"]["mean_difference"][0] == pytest.approx(length, rel=1e-6)
    assert found.metrics["pair", "base-sft"]["direction_consistency"][0] == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(found.directions["base-sft"], mean_difference(left, right))


def test_intervals_are_those_of_rows_that_are_really_repeated() -> None:
    left, right = rows(), rows() + 0.3 * rows(seed=1)
    cka, length, consistency = [], [], []
    for chosen, prompts in resampled_rows():
        cka.append(reference.linear_cka(left[chosen], right[chosen]))
        length.append(reference.norm(reference.mean_difference(left[chosen], right[chosen])))
        consistency.append(reference.direction_consistency(left[chosen], right[chosen], prompts))
    found = numbers(left, right).metrics["pair", "base-sft"]
    for name, draws in (("cka", cka), ("mean_difference", length), ("direction_consistency", consistency)):
        value, low, high = found[name]
        assert value is not None
        expected = moved(draws, value)
        assert (low, high) == pytest.approx(
            (expected[0], min(expected[1], 1) if name != "mean_difference" else expected[1])
        )


@pytest.mark.parametrize("width", [8, 64])
def test_the_interval_of_effective_rank_follows_variances_along_the_principal_directions(width: int) -> None:
    x = rows(width)
    axes = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False).Vh
    draws = []
    for chosen, _ in resampled_rows():
        singular = ((x[chosen].double() @ axes.T).var(0, correction=0)).sqrt()
        shares = singular / singular.sum()
        draws.append(float((-(shares * shares.clamp_min(1e-300).log()).sum()).exp()))
    value, low, high = numbers(x, x).metrics["run", "base"]["effective_rank"]
    assert value is not None
    assert (low, high) == pytest.approx(moved(draws, value), rel=1e-5)


def test_every_layer_and_metric_sees_the_same_draws() -> None:
    assert numbers(rows(), rows(seed=1)).metrics == numbers(rows(), rows(seed=1)).metrics
    again = numbers(rows(), rows(seed=1), seed=1).metrics
    assert (
        again["run", "base"]["effective_rank"][0] == numbers(rows(), rows()).metrics["run", "base"]["effective_rank"][0]
    )
    assert again["run", "base"] != numbers(rows(), rows()).metrics["run", "base"]


def test_one_prompt_has_values_and_no_interval() -> None:
    found = numbers(rows(), rows(seed=1), prompts=np.zeros(M)).metrics
    estimates = [estimate for metrics in found.values() for estimate in metrics.values()]
    assert len(estimates) == 5
    assert all(value is not None and low is None and high is None for value, low, high in estimates)


def test_equal_runs_have_no_direction() -> None:
    assert numbers(rows(), rows()).metrics["pair", "base-sft"] == {
        "cka": (1, 1, 1),
        "mean_difference": (0, 0, 0),
        "direction_consistency": (None, None, None),
    }


def test_runs_of_different_width_have_cka_only() -> None:
    found = numbers(rows(8), rows(20))
    assert set(found.metrics["pair", "base-sft"]) == {"cka"}
    assert not found.directions
    with pytest.raises(ModelError, match=r"mean_difference, direction_consistency: .*; got 'widths 8 and 20'; valid: "):
        mean_difference(rows(8), rows(20))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), width=st.integers(1, 40), other=st.integers(1, 40), scale=st.floats(1e-3, 1e3))
def test_cka_is_a_similarity_blind_to_rotation_and_scale(seed: int, width: int, other: int, scale: float) -> None:
    x, y = rows(width, seed), rows(other, seed + 1)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double()).Q
    cka = linear_cka(x, y)
    assert 0 <= cka <= 1
    assert linear_cka(y, x) == pytest.approx(cka, abs=1e-9)
    assert linear_cka(scale * (x.double() @ rotation) + 2, y) == pytest.approx(cka, abs=1e-7)
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    estimates = numbers(x, y).metrics
    for metrics in estimates.values():
        for value, low, high in metrics.values():
            assert value is not None
            assert low is not None
            assert high is not None
            assert low <= value <= high


def test_a_trajectory_is_a_mean_with_percentiles_of_resampled_means() -> None:
    values = np.random.default_rng(3).normal(size=(6, 4))
    mean, low, high = trajectory(values, np.random.default_rng(0), RESAMPLES)
    counts = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=RESAMPLES)
    draws = [np.repeat(values, row, axis=0).mean(0) for row in counts]
    np.testing.assert_allclose(mean, values.mean(0))
    assert low is not None
    assert high is not None
    np.testing.assert_allclose((low, high), np.percentile(draws, [2.5, 97.5], axis=0))


def test_a_trajectory_of_one_prompt_has_no_interval() -> None:
    mean, low, high = trajectory([[1.0, 2.0]], np.random.default_rng(0), RESAMPLES)
    assert mean.tolist() == [1, 2]
    assert low is None
    assert high is None
