"""Every method against `torch.linalg.svd` of the matrix that it says it truncates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from low_rank_inputs import random_matrices, statistics_of, uneven_inputs
from torch import Tensor
from torch.testing import assert_close

from nullarm.errors import ModelError, UsageError
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.decompose import Truncated, decompose
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, LowRank, Svd, SvdLlm, WhitenedGrc

TINY_RIDGE = 1e-12
SHAPES = {"tall": (24, [40]), "square": (24, [24]), "wide": (40, [24]), "many rows": (24, [1100, 30])}
"""Width, and height of each matrix: more columns than rows, or less, or more rows than are taken at once."""
SHARING = {**SHAPES, "q, k, v": (24, [24, 12, 12]), "narrow": (40, [12, 8])}


def approximations(found: Truncated) -> Tensor:
    """The matrices that factors stand for, stacked."""
    basis, factors = found
    return torch.cat(list(factors)).double() @ basis.double()


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    best: Tensor = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return best


def oracle(method: LowRank, weights: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D W C, the diagonal of D `[Σ out, 1]`, and C, by the formulas of the papers."""
    stack, width = torch.cat(list(weights)), x.shape[1]
    d, c = torch.ones(len(stack), 1, dtype=torch.float64), torch.eye(width, dtype=torch.float64)
    if isinstance(method, Grc) and method.normalised:
        d = torch.cat([torch.full((len(w), 1), 1 / float(w.norm()), dtype=torch.float64) for w in weights])
    if isinstance(method, Asvd):
        c = x.abs().mean(0).pow(method.alpha).diag()
    if isinstance(method, SvdLlm | WhitenedGrc):
        c = torch.linalg.cholesky(x.T @ x)
    return d * stack @ c, d, c


def check(method: LowRank, weights: Sequence[Tensor], x: Tensor, statistics: InputStatistics) -> None:
    m, d, c = oracle(method, weights, x)
    found = decompose(method, weights, statistics)
    assert_close(found.singular_values, torch.linalg.svdvals(m), rtol=1e-5, atol=0)
    for rank in (1, 7, len(found.singular_values)):
        ours = found.truncate(rank)
        assert ours[0].shape == (rank, x.shape[1])
        assert [factor.shape for factor in ours[1]] == [(len(w), rank) for w in weights]
        wanted = torch.linalg.solve(c, truncated(m, rank), left=False) / d
        off = (approximations(ours) - wanted) @ x.T
        assert float(off.norm() / (wanted @ x.T).norm()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [Svd(), Asvd(), Asvd(alpha=1), SvdLlm(ridge=TINY_RIDGE)])
def test_a_method_of_one_matrix(method: LowRank, shape: str) -> None:
    width, heights = SHAPES[shape]
    x = uneven_inputs(width, 500)
    for weight in random_matrices(width, *heights):
        check(method, [weight], x, statistics_of(x))


@pytest.mark.parametrize("shape", SHARING)
@pytest.mark.parametrize("method", [Grc(), Grc(normalised=False), WhitenedGrc(ridge=TINY_RIDGE)])
def test_a_method_that_shares_a_basis(method: LowRank, shape: str) -> None:
    width, heights = SHARING[shape]
    x = uneven_inputs(width, 500)
    check(method, random_matrices(width, *heights), x, statistics_of(x))


@pytest.mark.parametrize("shape", SHARING)
def test_grc_is_the_published_one(shape: str) -> None:
    """P: top eigenvectors of K = Σ WᵀW/‖W‖², rows orthonormal; W̃ = W Pᵀ."""
    width, heights = SHARING[shape]
    weights = random_matrices(width, *heights)
    k = sum((w.T @ w / w.norm() ** 2 for w in weights), torch.zeros(width, width, dtype=torch.float64))
    vectors = torch.linalg.eigh(k).eigenvectors[:, -5:]
    basis, factors = decompose(Grc(), weights).truncate(5)
    assert_close(basis @ basis.T, torch.eye(5, dtype=torch.float64))
    assert_close(basis.T @ basis, vectors @ vectors.T)
    for weight, factor in zip(weights, factors, strict=True):
        assert_close(factor, weight @ basis.T)


def test_a_basis_is_orthonormal_beyond_the_rank_of_the_matrix() -> None:
    [left], [right] = random_matrices(3, 20), random_matrices(30, 3)
    basis, (factor,) = decompose(Grc(), [left @ right]).truncate(6)
    assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64))
    assert_close(factor @ basis, left @ right)


def test_the_gram_matrix_of_outputs_finds_what_that_of_inputs_finds() -> None:
    [weight], x = random_matrices(40, 24), uneven_inputs(40, 500)
    by_inputs = decompose(SvdLlm(), [weight], statistics_of(x))
    by_outputs = decompose(SvdLlm(), [weight], statistics_of(x, weight))
    assert_close(by_outputs.singular_values, by_inputs.singular_values)
    assert_close(approximations(by_outputs.truncate(9)), approximations(by_inputs.truncate(9)))
    m, _, c = oracle(SvdLlm(), [weight], x)  # by Cholesky and its inverse
    assert_close(approximations(by_outputs.truncate(9)), torch.linalg.solve(c, truncated(m, 9), left=False))


@pytest.mark.parametrize("method", [Svd(), Grc(), Asvd(), SvdLlm()])
@pytest.mark.parametrize("heights", [[40], [16]])
def test_a_rank_is_the_start_of_every_larger_one(method: LowRank, heights: list[int]) -> None:
    weights, x = random_matrices(24, *heights), uneven_inputs(24, 100)
    found = decompose(method, weights, statistics_of(x))
    (small, few), (large, many) = found.truncate(4), found.truncate(11)
    assert_close(small.abs(), large[:4].abs())
    assert_close(few[0].abs(), many[0][:, :4].abs())


@pytest.mark.parametrize("heights", [[300], [64]])
def test_singular_values_near_rounding_are_lost_and_the_output_is_not(heights: list[int]) -> None:
    """Through a Gram matrix half of the digits go: σ below 1e-8 of the largest."""
    rng = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 64, generator=rng, dtype=torch.float64))[0] for n in (*heights, 128))
    sigma = torch.logspace(0, -14, 64, dtype=torch.float64)
    weight = (u * sigma) @ v.T
    true, found = torch.linalg.svdvals(weight), decompose(Svd(), [weight])
    near = true > 1e-6 * true[0]
    assert_close(found.singular_values[near], true[near], rtol=1e-3, atol=0)
    assert (found.singular_values - true).abs().max() < 1e-7 * true[0]
    lost = true < 1e-11 * true[0]
    assert (found.singular_values[lost] / true[lost] - 1).abs().max() > 1
    for rank in (4, 20, 50, 64):
        off = approximations(found.truncate(rank)) - truncated(weight, rank)
        assert float(off.norm() / weight.norm()) < 1e-6


@pytest.mark.parametrize("method", [Svd(), Grc(), SvdLlm(), WhitenedGrc()])
def test_weights_in_bf16_get_factors_in_fp32_and_no_gradient(method: LowRank) -> None:
    parameters = [w.requires_grad_() for w in random_matrices(24, 40, 12, dtype=torch.bfloat16)]
    weights, x = parameters if method.shared else parameters[:1], uneven_inputs(24, 100)
    basis, factors = decompose(method, weights, statistics_of(x)).truncate(24)
    assert {basis.dtype, *(factor.dtype for factor in factors)} == {torch.float32}
    assert not basis.requires_grad
    assert not factors[0].requires_grad
    assert_close(approximations((basis, factors)), torch.cat(weights).double().detach(), rtol=1e-4, atol=1e-4)


def test_asvd_with_alpha_nought_is_plain_svd() -> None:
    weights, x = random_matrices(24, 40), uneven_inputs(24, 100)
    ours, plain = decompose(Asvd(alpha=0), weights, statistics_of(x)), decompose(Svd(), weights)
    assert_close(approximations(ours.truncate(5)), approximations(plain.truncate(5)))


@pytest.mark.parametrize("method", [Grc(), Svd(), Asvd(), SvdLlm(), WhitenedGrc()])
@pytest.mark.parametrize("height", [16, 40])
def test_channels_and_matrices_of_nothing_but_zeros(method: LowRank, height: int) -> None:
    x, zeros = uneven_inputs(24, 100), torch.zeros(height, 24, dtype=torch.float64)
    x[:, 3] = 0
    for weight in (zeros, random_matrices(24, height)[0]):
        ours = approximations(decompose(method, [weight], statistics_of(x)).truncate(16))
        assert ours.isfinite().all()
        if height == 16:
            assert_close(ours, weight)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_is_not_there_is_refused(rank: int) -> None:
    found = decompose(Svd(), random_matrices(24, 16))
    with pytest.raises(UsageError, match=f"no such rank; got {rank}; valid: 1 to 16"):
        found.truncate(rank)


@pytest.mark.parametrize("method", [Asvd(), SvdLlm()])
def test_a_method_without_the_statistics_it_needs_is_refused(method: LowRank) -> None:
    with pytest.raises(UsageError, match=f"{method.kind} needs statistics of the inputs; valid: `calibration.collect`"):
        decompose(method, random_matrices(24, 16))


def test_whitening_without_the_gram_matrix_of_the_inputs_is_refused() -> None:
    x, [narrow, tall] = uneven_inputs(24, 100), random_matrices(24, 16, 40)
    with pytest.raises(UsageError, match="whitening needs the Gram matrix of the inputs"):
        decompose(SvdLlm(), [tall], statistics_of(x, narrow)).truncate(1)


def test_inputs_that_cannot_be_whitened_are_refused() -> None:
    words = "XᵀX of the calibration text is not positive definite, ridge included; got 0.0001; valid: a larger `ridge`"
    with pytest.raises(ModelError, match=words):
        decompose(SvdLlm(), random_matrices(24, 40), statistics_of(torch.zeros(9, 24, dtype=torch.float64)))
