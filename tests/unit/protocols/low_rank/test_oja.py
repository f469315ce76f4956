"""Oja's rule where its theorem holds: on one distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullarm.protocols.low_rank.online.oja import mean_eigenvalue, oja_step, orthonormal, top_subspace, turned

WIDTH, RANK = 20, 4


def spectrum_and_axes(gap: float = 4.0) -> tuple[Tensor, Tensor]:
    """Standard deviations along orthonormal axes: four large ones, and sixteen that are `gap` times smaller."""
    rng = torch.Generator().manual_seed(0)
    axes = orthonormal(torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64))
    return torch.tensor([gap] * RANK + [1.0] * (WIDTH - RANK), dtype=torch.float64), axes


def drawn(n: int, rng: torch.Generator) -> Tensor:
    scales, axes = spectrum_and_axes()
    return torch.randn(n, WIDTH, generator=rng, dtype=torch.float64) * scales @ axes


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return orthonormal(torch.randn(RANK, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(
        dtype
    )


def adapted(blocks: int, c: float = 1.0) -> list[float]:
    """Distance from the top subspace after each block."""
    rng, basis, (_, axes) = torch.Generator().manual_seed(2), start(), spectrum_and_axes()
    found = []
    for t in range(1, blocks + 1):
        rows = drawn(64, rng)
        basis = oja_step(basis, rows, c / t, mean_eigenvalue(rows))
        found.append(float(turned(basis, axes[:RANK])))
    return found


def test_it_converges_to_the_top_subspace() -> None:
    """Largest principal angle, by the singular values of the product of the bases."""
    rng, basis, (_, axes) = torch.Generator().manual_seed(2), start(), spectrum_and_axes()
    assert torch.linalg.svdvals(basis @ axes[:RANK].T)[-1] < 0.5
    for t in range(1, 401):
        rows = drawn(64, rng)
        basis = oja_step(basis, rows, 1 / t, mean_eigenvalue(rows))
    assert torch.linalg.svdvals(basis @ axes[:RANK].T)[-1] > 0.9999


def test_noise_is_averaged_out_as_the_rate_falls() -> None:
    apart = adapted(400)
    assert apart[-1] < 0.4 * apart[19] < 0.2 * apart[0]


def test_rows_stay_orthonormal() -> None:
    rng, basis = torch.Generator().manual_seed(2), start(torch.float32)
    for t in range(1, 201):
        rows = drawn(64, rng).float()
        basis = oja_step(basis, rows, 1 / t, mean_eigenvalue(rows))
    torch.testing.assert_close(basis @ basis.T, torch.eye(RANK), rtol=0, atol=1e-5)


def test_a_step_by_nothing_leaves_the_basis_and_its_signs() -> None:
    torch.testing.assert_close(oja_step(start(), torch.zeros(3, WIDTH).double(), 1.0, torch.tensor(1.0)), start())


def test_the_scale_makes_steps_free_of_units() -> None:
    rows = drawn(64, torch.Generator().manual_seed(3))
    plain, larger = (oja_step(start(), r, 0.5, mean_eigenvalue(r)) for r in (rows, 1000 * rows))
    torch.testing.assert_close(plain, larger)
    assert float(mean_eigenvalue(rows)) == pytest.approx(float(torch.linalg.eigvalsh(rows.T @ rows).mean()))


def test_refit_is_where_oja_goes() -> None:
    rows = drawn(20_000, torch.Generator().manual_seed(4))
    _, axes = spectrum_and_axes()
    refit = top_subspace(rows.T @ rows, start())
    assert float(turned(refit, axes[:RANK])) < 0.02
    torch.testing.assert_close(refit @ refit.T, torch.eye(RANK, dtype=torch.float64))


def test_where_there_is_too_little_to_refit_the_basis_stays() -> None:
    """Two directions were seen; of the other two, the basis keeps what it had."""
    rows = drawn(2, torch.Generator().manual_seed(5))
    refit = top_subspace(rows.T @ rows, start())
    seen = orthonormal(rows)
    assert float((rows - rows @ refit.T @ refit).norm() / rows.norm()) < 1e-6
    rest = refit - refit @ seen.T @ seen
    inside = start() - start() @ seen.T @ seen
    span = orthonormal(inside)
    assert float((rest - rest @ span.T @ span).norm()) < 1e-3


def test_how_far_subspaces_are_apart() -> None:
    eye = torch.eye(WIDTH, dtype=torch.float64)
    assert float(turned(eye[:4], eye[:4].flip(0))) == 0
    assert float(turned(eye[:4], eye[4:8])) == 1
    assert float(turned(eye[:4], eye[2:6])) == pytest.approx(0.5**0.5)
    slight = orthonormal(eye[:1] + 1e-9 * eye[5:6])
    assert float(turned(slight, eye[:1])) == pytest.approx(1e-9)
