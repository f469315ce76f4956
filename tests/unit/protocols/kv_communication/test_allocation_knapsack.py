from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nullarm.errors import InvalidResult, StudyError
from nullarm.protocols.kv_communication.allocation import allocate as module
from nullarm.protocols.kv_communication.allocation.allocate import Choice, Choices, allocate, budget_bytes, knapsack
from nullarm.protocols.kv_communication.geometry import HALVES, Half, Stream

WIDTHS = (1, 2, 4, 8)


def rows(layers: int, kl: dict[tuple[int, Half], float], widths: tuple[int, ...] = WIDTHS) -> list[dict[str, Any]]:
    """Divergences that fall fourfold with each bit; 8·bits + 4 bytes a token."""
    return [
        {
            "layer": layer,
            "half": half,
            "bits": bits,
            "kl": kl.get((layer, half), 0.1) / 4**bits,
            "bytes_per_token": 8.0 * bits + 4,
        }
        for layer in range(layers)
        for half in HALVES
        for bits in widths
    ]


def brute_force(choices: Choices, budget: float) -> tuple[float, float]:
    """Least KL within the budget, and the fewest bytes at it."""
    every = [tuple(by_width.values()) for by_width in choices.values()]
    totals = [(sum(c.kl for c in picked), sum(c.size for c in picked)) for picked in product(*every)]
    fitting = [total for total in totals if total[1] <= budget * (1 + 1e-12)]
    least = min(kl for kl, _ in fitting)
    return least, min(size for kl, size in fitting if kl <= least * (1 + 1e-9))


def totals(choices: Choices, chosen: dict[Stream, int]) -> tuple[float, float]:
    picked = [choices[stream][width] for stream, width in chosen.items()]
    return sum(c.kl for c in picked), sum(c.size for c in picked)


def random_choices(rng: np.random.Generator, unit: float, *, regular: bool) -> Choices:
    """Six streams at four widths: divergences that mostly fall, bytes of a packed or of an entropy-coded stream."""

    def choice(width: int, weight: float) -> Choice:
        noise = 1.0 if regular else rng.uniform(0.8, 1.2)
        return Choice(unit * weight * 3.0**-width * rng.uniform(0.5, 2), (8 * width + 4) * noise)

    return {
        Stream(layer, half): {width: choice(width, weight) for width in WIDTHS}
        for layer in range(3) for half in HALVES
        for weight in (10 ** rng.uniform(-3, 1),)
    }  # fmt: skip


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1.0, 1e3])
def test_the_allocation_is_the_best_of_all(unit: float, regular: bool) -> None:
    rng = np.random.default_rng([int(regular), int(unit * 1e9)])
    for _ in range(8):
        choices = random_choices(rng, unit, regular=regular)
        budget = budget_bytes(choices, rng.uniform(1.2, 6))
        chosen = knapsack(choices, budget)
        assert totals(choices, chosen) == pytest.approx(brute_force(choices, budget), rel=1e-8)
        assert totals(choices, chosen)[1] <= budget * (1 + 1e-11)


def test_a_stream_that_matters_gets_more_bits() -> None:
    chosen = allocate(rows(3, {(1, "value"): 50.0}), WIDTHS, mean_bits=2)
    assert chosen[Stream(1, "value")] == max(chosen.values()) > 2
    assert max(width for stream, width in chosen.items() if stream != Stream(1, "value")) <= 2
    assert list(chosen) == sorted(chosen)


def test_equal_streams_at_a_whole_width_all_get_it() -> None:
    assert set(allocate(rows(2, {}), WIDTHS, mean_bits=2).values()) == {2}


def test_of_equal_divergences_the_fewer_bytes_are_taken() -> None:
    nothing_matters = [row | {"kl": 0.0} for row in rows(2, {})]
    assert set(allocate(nothing_matters, WIDTHS, mean_bits=8).values()) == {1}
    level = [row | {"kl": 0.25 if row["bits"] == 1 else 0.125} for row in rows(2, {})]
    assert set(allocate(level, WIDTHS, mean_bits=8).values()) == {2}


def test_the_budget_is_linear_between_widths_and_no_more_than_the_widest() -> None:
    choices: Choices = {Stream(0, "key"): {2: Choice(1.0, 20.0), 4: Choice(0.5, 36.0)}}
    assert [budget_bytes(choices, bits) for bits in (2, 2.5, 3, 4, 8)] == [20, 24, 28, 36, 36]


def test_only_the_widths_of_the_channel_are_chosen_from() -> None:
    assert set(allocate(rows(1, {}), (2, 8), mean_bits=5).values()) <= {2, 8}


def test_sixty_layers_are_allocated_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    weights = {(layer, half): float(10 ** rng.uniform(-4, 1)) for layer in range(60) for half in HALVES}
    table = rows(60, weights)
    chosen = allocate(table, WIDTHS, mean_bits=3)
    taken = sum(8 * width + 4 for width in chosen.values())
    assert taken <= 120 * (8 * 3 + 4) < taken + 8 * 4
    by_weight = sorted(chosen, key=lambda stream: weights[stream.layer, stream.half])
    assert [chosen[stream] for stream in by_weight] == sorted(chosen.values())


@pytest.mark.parametrize("kl", [-1e-3, float("nan"), float("inf")])
def test_a_divergence_that_is_none_is_refused(kl: float) -> None:
    harmed = rows(1, {})
    harmed[1]["kl"] = kl
    with pytest.raises(
        InvalidResult, match=f"the sensitivity of layer 0 key at 2 bits is no divergence; got {kl}; valid: >= 0"
    ):
        allocate(harmed, WIDTHS, mean_bits=2)


def test_a_table_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidResult, match=r"layer 0 key has no sensitivity at a width; got \[3\]; valid: 1, 2, 4, 8"):
        allocate(rows(1, {}), (2, 3), mean_bits=2)
    with pytest.raises(InvalidResult, match="layer 0 key has two sensitivities at one width; got 1"):
        allocate(rows(1, {}) * 2, WIDTHS, mean_bits=2)
    with pytest.raises(InvalidResult, match="no stream has a sensitivity"):
        allocate([], WIDTHS, mean_bits=2)


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    words = "an allocation's mean_bits is less than its narrowest width; got 1.5; valid: at least 2"
    with pytest.raises(StudyError, match=words):
        allocate(rows(1, {}), (2, 4), mean_bits=1.5)
    choices: Choices = {Stream(0, "key"): {2: Choice(1.0, 20.0)}, Stream(0, "value"): {2: Choice(1.0, 20.5)}}
    with pytest.raises(StudyError, match=r"no widths fit the budget, bytes a token; got 40.0; valid: at least 40.5"):
        knapsack(choices, 40.0)
    assert knapsack(choices, 40.5) == dict.fromkeys(choices, 2)


def test_a_solver_that_gives_up_is_no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up = SimpleNamespace(success=False, message="out of time")
    monkeypatch.setattr(module, "milp", lambda *args, **kwargs: gave_up)
    with pytest.raises(InvalidResult, match="the allocation of bits was not solved: out of time"):
        allocate(rows(1, {}), WIDTHS, mean_bits=2)
