"""Numbers as people read them. Full precision stays in the CSV of each table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from nullarm.report.blocks import Value

MISSING = "—"
SIGNIFICANT = 4
LEAST_P = 1e-16
"""What a computed p-value cannot tell from zero."""


def finite(value: float | None) -> float | None:
    """`value` as a float, or None when it is missing, infinite or not a number."""
    return float(value) if value is not None and math.isfinite(value) else None


def as_number(value: object) -> int | float | None:
    """`value` as a plain number, or None when it is no number; truth values are none, numpy's scalars are."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else None


def show(value: Value) -> str:
    """Any value, numbers with four significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = as_number(value)
    if number is None:
        return str(value)
    return _minus(f"{number:,}") if isinstance(number, int) else _float(number)


def show_column(values: Iterable[Value]) -> list[str]:
    """A table column: floats share their number of decimals when none of them is lost by it."""
    column = [(value, as_number(value)) for value in values]
    sizes = [abs(n) for _, n in column if isinstance(n, float) and math.isfinite(n) and n]
    decimals = SIGNIFICANT - 1 - math.floor(math.log10(max(sizes))) if sizes else -1
    if not 0 <= decimals <= 6 or min(sizes) < 10.0**-decimals:
        return [show(value) for value, _ in column]
    return [
        _minus(f"{n + 0.0:,.{decimals}f}") if isinstance(n, float) and math.isfinite(n) else show(value)
        for value, n in column
    ]


def show_p(p: float | None) -> str:
    """A p-value, with two significant digits below 0.1."""
    if p is None:
        return MISSING
    if p < LEAST_P:
        return f"< {LEAST_P:g}"
    if p >= 0.1:
        return f"{p:.2f}"
    return f"{p:.2g}" if p < 1e-4 else f"{p:.{1 - math.floor(math.log10(p))}f}"


def effect_decimals(interval: tuple[float, float] | None, *values: float | None) -> int:
    """Decimals worth showing: two significant digits of the interval's width, else three of the largest value."""
    width = interval[1] - interval[0] if interval else math.inf
    if math.isfinite(width) and width > 0:
        return _clamp(1 - math.floor(math.log10(width)))
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    return _clamp(2 - math.floor(math.log10(max(known)))) if known else 1


def show_effect(value: float | None, decimals: int, *, sign: bool = True) -> str:
    """An effect with a fixed number of decimals, signed unless told otherwise; zero has no sign."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return _special(value)
    rounded = round(value, decimals)
    return _minus(f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}") if rounded else f"{0:.{decimals}f}"


def show_interval(interval: tuple[float, float] | None, decimals: int) -> str:
    """`[low, high]`, with a round bracket at an infinite end."""
    if interval is None:
        return MISSING
    low, high = (show_effect(end, decimals) for end in interval)
    return f"{'[' if math.isfinite(interval[0]) else '('}{low}, {high}{']' if math.isfinite(interval[1]) else ')'}"


def show_percent(share: float) -> str:
    """A share as per cent: 0.95 → `95 %`."""
    return f"{share * 100:.6g}\u00a0%"


def _float(value: float) -> str:
    if not math.isfinite(value):
        return _special(value)
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e7:
        decimals = max(0, SIGNIFICANT - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        return _minus(text.rstrip("0").rstrip(".") if "." in text else text)
    return _minus(f"{value:.{SIGNIFICANT - 1}e}")


def _special(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "−∞"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _clamp(decimals: int) -> int:
    return max(0, min(6, decimals))
