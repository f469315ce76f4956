"""Whether and how the channels of the residual stream are scaled before truncation. No torch: a plan reads it."""

from __future__ import annotations

from pydantic import Field

from nullarm.study.spec import Strict


class GaugeSettings(Strict):
    """A diagonal gauge of the residual stream, for methods grc and svd.

    It needs matrices that read the stream (q, k, v, gate, up) and such that write to it (o, down): with one kind alone
    every channel is scaled alike, which leaves g = 1.
    """

    fitted: bool = True
    """Fit g. Without, g = 1: the control, whose factors are to the bit those without a gauge."""
    iterations: int = Field(default=20, ge=1, le=1000)
    """Steps of g, at most."""
    largest: float = Field(default=1.0, gt=0, le=10)
    """Bound of |log g|. What the gauge minimises has no minimum, so that g usually ends there."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Stop before a step in which no log g would change by this much."""
