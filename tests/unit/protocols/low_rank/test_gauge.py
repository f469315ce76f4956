"""The gauge: what it leaves alone, when it moves, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from low_rank_inputs import random_matrices
from torch import Tensor

from nullarm.errors import StudyError
from nullarm.protocols.low_rank.gauge import GaugeFit, Truncation, fit_gauge, gauged_factors, role_of
from nullarm.protocols.low_rank.gauge_settings import GaugeSettings
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.reconstruction import weight_error
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, RoundToNearest, Svd, SvdLlm, WhitenedGrc

WIDTH = 24
METHODS = [Grc(), Grc(normalised=False), Svd()]
THOROUGH = GaugeSettings(iterations=200, tolerance=1e-6)


def uneven(side: int, *shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Matrices whose channels along one side differ in size, ten times at most."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for out, width in shapes:
        scales = 10 ** (torch.rand(out if side == 0 else width, generator=rng, dtype=torch.float64) - 0.5)
        weight = torch.randn(out, width, generator=rng, dtype=torch.float64)
        found.append(weight * (scales[:, None] if side == 0 else scales))
    return found


READERS = [Truncation(tuple(uneven(1, (24, WIDTH), (8, WIDTH), (8, WIDTH))), 10)]
WRITERS = [Truncation((w,), 9) for w in uneven(0, (WIDTH, 24), (WIDTH, 40), seed=1)]


def fitted(method: Any = METHODS[0], settings: GaugeSettings = THOROUGH) -> GaugeFit:
    return fit_gauge(method, READERS, WRITERS, settings)


def tail(method: Any, g: Tensor) -> float:
    """E by the definition: what full decompositions in gauged coordinates lose, squared."""
    sides = []
    gauged: list[tuple[list[Truncation], Callable[[Tensor], Tensor]]]
    gauged = [(READERS, lambda w: w * g), (WRITERS, lambda w: w / g[:, None])]
    for groups, scaled in gauged:
        lost = 0.0
        for group in groups:
            # the norm of a matrix is that at g = 1
            norms = [w.norm() if getattr(method, "normalised", False) else 1.0 for w in group.weights]
            stacked = torch.cat([scaled(w) / norm for w, norm in zip(group.weights, norms, strict=True)])
            lost += float(torch.linalg.svdvals(stacked)[group.rank :].square().sum())
        sides.append(lost)
    return 2 * float((sides[0] * sides[1]) ** 0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_a_gauge_of_one_gives_the_very_factors(method: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weights = random_matrices(shape[1], shape[0], dtype=dtype)
    basis, (factor,) = decompose(method, weights).truncate(5)
    for role, width in (("reader", shape[1]), ("writer", shape[0])):
        gauged, (gauged_factor,) = gauged_factors(method, weights, 5, role, torch.ones(width, dtype=torch.float64))  # type: ignore[arg-type]
        assert torch.equal(gauged, basis)
        assert torch.equal(gauged_factor, factor)


@pytest.mark.parametrize("method", METHODS)
def test_the_control_is_one(method: Any) -> None:
    fit = fit_gauge(method, READERS, WRITERS, GaugeSettings(fitted=False))
    assert torch.equal(fit.g, torch.ones(WIDTH, dtype=torch.float64))
    assert (fit.iterations, fit.moved) == (0, 0.0)
    assert fit.history == pytest.approx((tail(method, fit.g),))


@pytest.mark.parametrize("method", METHODS)
def test_with_readers_alone_it_is_inert(method: Any) -> None:
    """The source's arm: q, k and v compressed, O and FFN untouched."""
    fit = fit_gauge(method, READERS, [], GaugeSettings())
    assert torch.equal(fit.g, torch.ones(WIDTH, dtype=torch.float64))
    assert (fit.iterations, fit.moved) == (0, 0.0)


def test_with_writers_alone_it_is_inert() -> None:
    assert fit_gauge(Svd(), [], WRITERS, GaugeSettings()).moved == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_with_readers_and_writers_it_moves_downhill(method: Any) -> None:
    fit = fitted(method)
    assert 0.1 < fit.moved <= THOROUGH.largest + 1e-12
    assert fit.moved == pytest.approx(float(fit.g.log().abs().max()))
    assert float(fit.g.log().mean()) == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(fit.history))
    assert fit.history[-1] < 0.98 * fit.history[0]
    assert len(fit.history) == fit.iterations + 1 < 200


@pytest.mark.parametrize("method", METHODS)
def test_energies_that_follow_the_gauge_are_those_of_full_decompositions(method: Any) -> None:
    fit = fitted(method)
    assert fit.history[0] == pytest.approx(tail(method, torch.ones(WIDTH, dtype=torch.float64)))
    assert fit.history[-1] == pytest.approx(tail(method, fit.g), rel=0.01)


def test_it_has_no_minimum_within_any_bound() -> None:
    """The finding that the bound is there for."""
    ends = [fitted(Svd(), THOROUGH.model_copy(update={"largest": largest})) for largest in (0.5, 1.0, 2.0, 4.0)]
    assert [end.moved for end in ends] == pytest.approx([0.5, 1.0, 2.0, 4.0], rel=1e-3)
    assert all(wider.history[-1] < end.history[-1] for end, wider in pairwise(ends))


def test_a_common_scale_of_the_stream_changes_nothing() -> None:
    """Writers a hundred times as large balance readers a hundredth the size."""
    larger = [Truncation(tuple(100 * w for w in group.weights), group.rank) for group in WRITERS]
    plain, scaled = fitted(Svd()), fit_gauge(Svd(), READERS, larger, THOROUGH)
    torch.testing.assert_close(scaled.g, plain.g)
    assert scaled.history == pytest.approx([100 * total for total in plain.history])


def test_it_stops_where_it_is_told() -> None:
    assert fitted(settings=GaugeSettings(iterations=3, tolerance=1e-9)).iterations == 3
    assert fitted(settings=GaugeSettings(tolerance=10.0)).iterations == 0


@pytest.mark.parametrize("method", METHODS[1:])
def test_no_gauge_has_a_smaller_error_of_weights_than_one(method: Any) -> None:
    g = fitted(method).g
    one = torch.ones_like(g)
    for role, groups in (("reader", READERS), ("writer", WRITERS)):
        for group in groups:
            gauged, plain = (
                weight_error(group.weights, *gauged_factors(method, group.weights, group.rank, role, at))  # type: ignore[arg-type]
                for at in (g, one)
            )
            assert gauged > plain


def test_the_gauge_is_undone_in_the_factors() -> None:
    """At full rank nothing is lost, whatever the gauge."""
    g = fitted().g
    basis, factors = gauged_factors(Grc(), READERS[0].weights, WIDTH, "reader", g)
    for weight, factor in zip(READERS[0].weights, factors, strict=True):
        torch.testing.assert_close(factor @ basis, weight)
    basis, factors = gauged_factors(Grc(), WRITERS[1].weights, WIDTH, "writer", g)
    torch.testing.assert_close(factors[0] @ basis, WRITERS[1].weights[0])


def test_where_nothing_is_truncated_nothing_moves() -> None:
    full = [Truncation(READERS[0].weights, WIDTH)], [Truncation(WRITERS[0].weights, WIDTH)]
    fit = fit_gauge(Svd(), *full, GaugeSettings())
    assert (fit.iterations, fit.moved, fit.history) == (0, 0.0, (0.0,))


def test_weights_are_left_as_they_are() -> None:
    before = [w.clone() for group in (*READERS, *WRITERS) for w in group.weights]
    gauged_factors(Svd(), WRITERS[0].weights, 4, "writer", fitted(Svd()).g)
    after = [w for group in (*READERS, *WRITERS) for w in group.weights]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("method", [Asvd(), SvdLlm(), WhitenedGrc(), RoundToNearest()])
def test_methods_without_a_gauge_are_named(method: Any) -> None:
    with pytest.raises(StudyError, match=f"method '{method.kind}' has no gauge.*valid: grc, svd; next: remove `gauge`"):
        fit_gauge(method, READERS, WRITERS, GaugeSettings())
    with pytest.raises(StudyError, match=f"method '{method.kind}' has no gauge"):
        gauged_factors(method, READERS[0].weights, 4, "reader", torch.ones(WIDTH))


def test_who_reads_and_who_writes() -> None:
    assert {slots: role_of(slots) for slots in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))} == {
        ("q", "k", "v"): "reader",
        ("o",): "writer",
        ("gate", "up"): "reader",
        ("down",): "writer",
    }
