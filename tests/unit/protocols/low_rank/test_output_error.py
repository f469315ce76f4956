"""Whitened truncation has the least output error there is at its rank, in theory and on the built-in model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from low_rank_inputs import random_matrices, statistics_of, uneven_inputs, world_batches
from torch.testing import assert_close

from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.reconstruction import output_error, weight_error
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, LowRank, Svd, SvdLlm, WhitenedGrc
from nullarm.protocols.low_rank.slots import INPUTS, SLOTS, linear

WorldInputs = tuple[Any, dict[tuple[int, str], InputStatistics]]


@pytest.fixture(scope="module")
def world_inputs() -> WorldInputs:
    model, tokenizer = load_causal_lm("builtin:world")
    batches = world_batches(tokenizer, 20_000)
    return model, collect(model, batches, layers=range(3), inputs=set(INPUTS.values()))


@given(
    seed=st.integers(0, 2**31),
    exponent=st.floats(-6, 1),
    rank=st.integers(1, 11),
    height=st.sampled_from([12, 40]),
    moved=st.sampled_from(["basis", "factor", "both"]),
)
@settings(max_examples=150, deadline=None)
def test_no_change_of_the_factors_at_equal_rank_improves_whitening(
    seed: int, exponent: float, rank: int, height: int, moved: str
) -> None:
    [weight], x = random_matrices(24, height, seed=seed % 5), uneven_inputs(24, 200, seed=seed % 7)
    statistics = statistics_of(x)
    basis, (factor,) = decompose(SvdLlm(ridge=1e-12), [weight], statistics).truncate(rank)
    rng = torch.Generator().manual_seed(seed)
    step = 10.0**exponent
    moved_basis, moved_factor = (
        part
        + step * part.std() * torch.randn(part.shape, generator=rng, dtype=torch.float64) * (moved in (name, "both"))
        for name, part in (("basis", basis), ("factor", factor))
    )
    least = output_error([weight], basis, [factor], statistics)
    assert output_error([weight], moved_basis, [moved_factor], statistics) >= least * (1 - 1e-9)


@pytest.mark.parametrize("ridge", [1e-12, 1e-4])
@pytest.mark.parametrize("heights", [[40], [16], [24, 12, 12]])
def test_what_is_left_is_what_was_cut_off(heights: list[int], ridge: float) -> None:
    """‖(W − W')X‖² = Σ σ_i² over i > k; with a ridge, between that of X alone and that of X with the ridge."""
    weights, x = random_matrices(24, *heights), uneven_inputs(24, 500)
    statistics, whole = statistics_of(x), (torch.cat(weights) @ x.T).norm()
    exact = torch.linalg.svdvals(torch.cat(weights) @ torch.linalg.cholesky(x.T @ x))
    found = decompose(WhitenedGrc(ridge=ridge), weights, statistics)
    for rank in (1, 5, 12):
        basis, factors = found.truncate(rank)
        error = output_error(weights, basis, factors, statistics) * whole
        assert_close(error, exact[rank:].norm(), rtol=1e-7 if ridge < 1e-6 else 1e-2, atol=0)
        assert exact[rank:].norm() * (1 - 1e-7) <= error <= found.singular_values[rank:].norm() * (1 + 1e-7)


def test_errors_are_those_of_the_matrices_written_out() -> None:
    weights, x = random_matrices(24, 1100, 12), uneven_inputs(24, 500)
    basis, factors = decompose(Grc(), weights).truncate(6)
    stack, off = torch.cat(weights), torch.cat(weights) - torch.cat(factors) @ basis
    assert weight_error(weights, basis, factors) == pytest.approx(float(off.norm() / stack.norm()))
    wanted = pytest.approx(float((x @ off.T).norm() / (x @ stack.T).norm()))
    assert output_error(weights, basis, factors, statistics_of(x)) == wanted
    by_sample = replace(statistics_of(x), gram=None)
    assert output_error(weights, basis, factors, by_sample) == pytest.approx(wanted.expected, rel=1e-4)


def test_nothing_is_lost_at_full_rank_and_all_of_it_without_factors() -> None:
    [weight], x = random_matrices(24, 16), uneven_inputs(24, 500)
    basis, factors = decompose(Svd(), [weight]).truncate(16)
    assert weight_error([weight], basis, factors) < 1e-7
    assert output_error([weight], basis, factors, statistics_of(x)) < 1e-6
    nothing = [torch.zeros_like(factors[0])]
    assert weight_error([weight], basis, nothing) == pytest.approx(1)
    assert output_error([weight], basis, nothing, statistics_of(x)) == pytest.approx(1)


@pytest.mark.parametrize("slot", SLOTS)
def test_plain_svd_loses_more_output_than_asvd_and_that_more_than_whitening(
    world_inputs: WorldInputs, slot: str
) -> None:
    """Whitening is least by theory, everywhere. ASVD is a heuristic: better than plain SVD on the whole of a slot."""
    model, inputs = world_inputs
    methods: list[LowRank] = [Svd(), Asvd(), SvdLlm()]
    total = dict.fromkeys(("svd", "asvd", "svd_llm"), 0.0)
    for layer in range(3):
        weights, statistics = [linear(model, layer, slot).weight], inputs[layer, INPUTS[slot]]
        found = {method.kind: decompose(method, weights, statistics) for method in methods}
        for rank in (4, 8, 16, 24):
            errors = {kind: output_error(weights, *of.truncate(rank), statistics) for kind, of in found.items()}
            assert errors["svd_llm"] < min(errors["asvd"], errors["svd"])
            total = {kind: total[kind] + error for kind, error in errors.items()}
    assert total["svd"] > total["asvd"] > total["svd_llm"]
