from __future__ import annotations

import numpy as np
import pytest

from nullarm.report.blocks import Value
from nullarm.report.numbers import (
    as_number,
    effect_decimals,
    finite,
    show,
    show_column,
    show_effect,
    show_interval,
    show_p,
    show_percent,
)

INF = float("inf")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (True, "yes"),
        (0, "0"),
        (-12345, "−12,345"),
        (0.5, "0.5"),
        (0.123456, "0.1235"),
        (-0.00012, "−0.00012"),
        (1.0e-9, "1.000e−09"),
        (1234.5678, "1,235"),
        (2.0e9, "2.000e+09"),
        (float("nan"), "NaN"),
        (-INF, "−∞"),
        ("text", "text"),
    ],
)
def test_show(value: Value, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize("value", [None, True, "1"])
def test_what_is_no_number(value: Value) -> None:
    assert as_number(value) is None


def test_numpy_scalars_are_numbers() -> None:
    assert show(np.int64(4096)) == "4,096"  # type: ignore[arg-type]
    assert show(np.float32(0.25)) == "0.25"  # type: ignore[arg-type]


def test_a_column_shares_its_decimals() -> None:
    assert show_column([0.66, 0.675, None, 0]) == ["0.6600", "0.6750", "—", "0"]


def test_a_column_of_many_sizes_loses_no_value() -> None:
    assert show_column([1000.0, 0.0001]) == ["1,000", "0.0001"]


def test_a_column_without_numbers() -> None:
    assert show_column(["a", None, float("nan")]) == ["a", "—", "NaN"]


@pytest.mark.parametrize(
    ("p", "shown"),
    [(None, "—"), (0.5, "0.50"), (0.0314, "0.031"), (0.000129, "0.00013"), (1e-7, "1e-07"), (0.0, "< 1e-16")],
)
def test_p(p: float | None, shown: str) -> None:
    assert show_p(p) == shown


def test_decimals_follow_the_width_of_the_interval() -> None:
    assert effect_decimals((0.0101, 0.0523)) == 3
    assert effect_decimals((-6.0, 6.0)) == 0
    assert effect_decimals((-INF, 0.1), 0.012) == 4
    assert effect_decimals(None) == 1


def test_effects_are_signed_and_zero_is_not() -> None:
    assert show_effect(0.0312, 3) == "+0.031"
    assert show_effect(-0.0312, 3) == "−0.031"
    assert show_effect(-0.0001, 3) == "0.000"
    assert show_effect(0.0312, 3, sign=False) == "0.031"
    assert show_effect(None, 3) == "—"


def test_an_open_interval_has_a_round_bracket() -> None:
    assert show_interval((-INF, 0.1), 1) == "(−∞, +0.1]"
    assert show_interval((0.1, INF), 1) == "[+0.1, ∞)"
    assert show_interval(None, 1) == "—"


def test_percent() -> None:
    assert show_percent(0.95) == "95\u00a0%"
    assert show_percent(0.975) == "97.5\u00a0%"


@pytest.mark.parametrize("value", [None, float("nan"), INF, -INF])
def test_what_cannot_be_drawn_is_missing(value: float | None) -> None:
    assert finite(value) is None
