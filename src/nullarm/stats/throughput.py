"""Throughput: what speeds timed in blocks of both arms say of their ratio.

Speeds are multiplied by what disturbs them, so they are compared as logarithms: a difference of log tok/s is a log
ratio. A block (ABBA) times both arms close together and in both orders, so that whatever moves slowly cancels in its
difference, and the block is the unit. `drift` is the check on that: the same ratio with time held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

import numpy as np
import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.arrays import Floats, as_finite
from nullarm.stats.paired import TTest
from nullarm.stats.verdict import Interval


def block_scores(speeds: npt.ArrayLike) -> Floats:
    """[blocks, 1] scores of one arm for `judge_difference(…, unit="blocks")`: each block's mean log tok/s.

    Args:
        speeds: [blocks, runs] tok/s, the same number of runs in every block (two in ABBA).

    Raises:
        InvalidResult: Ragged blocks, blocks without runs, or a speed that is not a finite number above 0.
    """
    values = as_speeds(speeds, "blocks, runs")
    if values.shape[1] == 0:
        raise InvalidResult("the blocks hold no runs", value=values.shape, valid="[blocks, runs ≥ 1]")
    scores: Floats = np.log(values).mean(axis=1, keepdims=True)
    return scores


def as_speeds(speeds: npt.ArrayLike, shape: str) -> Floats:
    """Checked speeds, tok/s, with the axes that `shape` names.

    Raises:
        InvalidResult: A speed that is not a finite number above 0, or other axes.
    """
    values = as_finite(speeds, shape, "speeds")
    if (values <= 0).any():
        raise InvalidResult("a speed is not above 0", value=float(values.min()), valid="tok/s > 0")
    return values


def as_ratio(log_ratio: Interval) -> Interval:
    """The interval of treated/control that one of a mean log difference stands for."""
    return replace(log_ratio, low=exp(log_ratio.low), high=exp(log_ratio.high))


@dataclass(frozen=True)
class Drift:
    """Ordinary least squares of log tok/s on the arm and on time.

    Attributes:
        log_ratio: Treated against control, with time held fixed.
        per_second: Change of log tok/s per second, with the arm held fixed.
    """

    log_ratio: TTest
    per_second: TTest

    def to_json(self) -> dict[str, float]:
        """Plain numbers; the slope as change of log tok/s per minute."""
        return {
            "log_ratio": self.log_ratio.estimate,
            "p_log_ratio": self.log_ratio.p_two_sided,
            "per_minute": 60 * self.per_second.estimate,
            "p_drift": self.per_second.p_two_sided,
        }


def drift(speeds: npt.ArrayLike, treated: npt.ArrayLike, seconds: npt.ArrayLike) -> Drift | None:
    """Arm and time covariate together.

    Args:
        speeds: [runs] tok/s.
        treated: [runs] 1 for runs of the treated arm, 0 for the control's.
        seconds: [runs] when each run began.

    Returns:
        The fit, or None where it is undefined: fewer than 4 runs, one arm only, arms that cannot be told from time, or
        runs that the line meets exactly.

    Raises:
        InvalidResult: Columns of different lengths, or a speed that is not a finite number above 0.
    """
    logs = np.log(as_speeds(speeds, "runs"))
    arm, time = as_finite(treated, "runs", "treated"), as_finite(seconds, "runs", "seconds")
    if not logs.shape == arm.shape == time.shape:
        raise InvalidResult("speeds, arms and times do not line up", value=(logs.shape, arm.shape, time.shape))
    span = float(np.ptp(time)) if len(time) else 0.0
    if len(logs) < 4 or span == 0:
        return None
    # Time runs from −½ to ½, so that the columns are of one size and rank means what it should.
    columns = np.column_stack([np.ones_like(arm), arm, (time - time.min()) / span - 0.5])
    coefficients, _, rank, _ = np.linalg.lstsq(columns, logs, rcond=1e-9)
    df = len(logs) - 3
    variance = float(((logs - columns @ coefficients) ** 2).sum()) / df
    if rank < 3 or variance <= (1e-12 * float(np.abs(logs).max())) ** 2:
        return None
    errors = np.sqrt(variance * np.diag(np.linalg.inv(columns.T @ columns)))
    return Drift(
        TTest(float(coefficients[1]), float(errors[1]), df, "least squares, time held fixed"),
        TTest(float(coefficients[2]) / span, float(errors[2]) / span, df, "least squares, arm held fixed"),
    )
