from itertools import pairwise

import pytest
import residual_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.protocols.residual.capture.geometry import factorial, norm_diff, pair_metrics, run_metrics
from nullarm.protocols.residual.tables import FACTORIAL_METRICS

LAYERS, N, D = 4, 5, 33


def stream(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    values = torch.randn(LAYERS + 1, N, D, generator=torch.Generator().manual_seed(seed))
    return (scale * values).to(dtype)


def close(found: Tensor, expected: list[list[float]]) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_metrics_of_a_run_are_those_of_the_formula(dtype: torch.dtype) -> None:
    h = stream(0, dtype)
    found = run_metrics(h)
    close(found["norm"], [[reference.norm(x) for x in layer] for layer in h])
    steps = [list(zip(below, above, strict=True)) for below, above in pairwise(h)]
    close(found["norm_delta"], [[reference.norm(b) - reference.norm(a) for a, b in step] for step in steps])
    close(found["cosine_prev"], [[reference.cosine(a, b) for a, b in step] for step in steps])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_of_a_pair_are_those_of_the_formula(dtype: torch.dtype) -> None:
    left, right = stream(0, dtype), stream(1, dtype)
    found = pair_metrics(left, right)
    layers = [list(zip(a, b, strict=True)) for a, b in zip(left, right, strict=True)]
    close(found["cosine"], [[reference.cosine(a, b) for a, b in layer] for layer in layers])
    close(found["norm_diff"], [[reference.norm_diff(a, b) for a, b in layer] for layer in layers])
    close(found["relative_diff"], [[reference.relative_diff(a, b) for a, b in layer] for layer in layers])
    torch.testing.assert_close(norm_diff(left, right), found["norm_diff"], rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), exponent=st.integers(-18, 18), half=st.booleans())
def test_a_residual_does_not_differ_from_itself(seed: int, exponent: int, half: bool) -> None:
    h = stream(seed, torch.bfloat16 if half else torch.float32, 2.0**exponent)
    found = pair_metrics(h, h.clone())
    assert bool((found["cosine"] == 1).all())
    assert bool((found["relative_diff"] == 0).all())
    assert bool((pair_metrics(h, 3 * h)["cosine"] <= 1).all())
    assert bool((pair_metrics(h, -3 * h)["cosine"] >= -1).all())


def test_zero_vectors_have_finite_numbers() -> None:
    zero, h = torch.zeros(LAYERS + 1, N, D), stream(0)
    same, left_zero, right_zero = pair_metrics(zero, zero), pair_metrics(zero, h), pair_metrics(h, zero)
    assert bool((same["cosine"] == 1).all())
    assert bool((same["relative_diff"] == 0).all())
    assert bool((left_zero["cosine"] == 0).all())
    assert bool((left_zero["relative_diff"] == 1).all())
    assert bool((right_zero["cosine"] == 0).all())
    assert bool((right_zero["relative_diff"] == 1).all())


def test_effects_are_those_of_the_formula() -> None:
    cells = torch.stack([stream(seed) for seed in range(4)])
    found = factorial(*cells)
    assert set(found) == set(FACTORIAL_METRICS)
    positions = cells.permute(1, 2, 0, 3)
    for name, values in found.items():
        close(values, [[reference.factorial(*four)[name] for four in layer] for layer in positions])


def test_an_effect_shows_as_what_it_is() -> None:
    base, embedding, body = stream(0), stream(1), stream(2)
    only_embedding = factorial(base, base, base + embedding, base + embedding)
    close(only_embedding["embedding_effect"], [[reference.norm(x) for x in layer] for layer in embedding])
    assert only_embedding["body_effect"].max() == 0
    assert only_embedding["interaction"].max() < 1e-6
    only_body = factorial(base, base + body, base, base + body)
    assert bool((only_body["body_share"] > 1 - 1e-6).all())
    nothing = factorial(base, base, base, base)
    assert all(nothing[name].max() == 0 for name in ("embedding_effect", "body_effect", "interaction"))
    assert bool(nothing["embedding_share"].isnan().all())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    scales=st.lists(st.floats(1e-4, 1e4), min_size=4, max_size=4),
    exponent=st.integers(-16, 3),
)
def test_shares_add_up_to_one_however_small_the_effects(seed: int, scales: list[float], exponent: int) -> None:
    found = factorial(*(stream(seed + i, scale=scale * 10.0**exponent) for i, scale in enumerate(scales)))
    shares = torch.stack([found[f"{name}_share"] for name in ("embedding", "body", "interaction")])
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(0), torch.ones(LAYERS + 1, N), rtol=0, atol=1e-6)


def test_residuals_of_different_width_are_refused_by_metric() -> None:
    left, right = stream(0), torch.ones(LAYERS + 1, N, D + 1)
    widths = rf"have no common space; got 'widths {D} and {D + 1}'; valid: models of one width; cka compares any"
    with pytest.raises(ModelError, match=f"cosine, norm_diff, relative_diff: the residuals {widths}"):
        pair_metrics(left, right)
    with pytest.raises(ModelError, match=f"^norm_diff: the residuals {widths}"):
        norm_diff(left, right)
    with pytest.raises(ModelError, match="embedding_effect, body_effect, interaction: the residuals have no common"):
        factorial(left, left, left, right)
