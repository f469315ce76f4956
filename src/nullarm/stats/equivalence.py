"""Claims with a margin: two one-sided tests (TOST, Schuirmann 1987) and non-inferiority. All are seed-level t-tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from nullarm.errors import InvalidResult
from nullarm.stats.paired import TTest, paired_t, welch


@dataclass(frozen=True)
class Tost:
    """Two one-sided tests of "the true difference lies inside ±margin".

    Attributes:
        p_lower: p-value of the claim that the difference is above −margin.
        p_upper: p-value of the claim that it is below +margin.
    """

    p_lower: float
    p_upper: float

    @property
    def p(self) -> float:
        """p-value of equivalence: both claims must hold, so the larger one."""
        return max(self.p_lower, self.p_upper)


def tost(test: TTest, margin: float) -> Tost:
    """TOST of any estimate with a t reference.

    Args:
        test: Estimate, standard error and degrees of freedom.
        margin: δ > 0, in the unit of the score.

    Raises:
        InvalidResult: The margin is not above 0.
    """
    _check(margin)
    return Tost(p_lower=test.p_above(-margin), p_upper=test.p_below(margin))


def tost_paired(differences: npt.ArrayLike, margin: float) -> Tost | None:
    """TOST of [n] paired differences; None where the paired t-test is undefined."""
    _check(margin)
    test = paired_t(differences)
    return None if test is None else tost(test, margin)


def tost_welch(treated: npt.ArrayLike, control: npt.ArrayLike, margin: float) -> Tost | None:
    """TOST of two unpaired arms; None where Welch's test is undefined."""
    _check(margin)
    test = welch(treated, control)
    return None if test is None else tost(test, margin)


def non_inferiority(test: TTest, margin: float) -> float:
    """p-value of the claim that treated − reference is above −margin.

    Raises:
        InvalidResult: The margin is not above 0.
    """
    _check(margin)
    return test.p_above(-margin)


def _check(margin: float) -> None:
    if not 0 < margin < float("inf"):
        raise InvalidResult("the equivalence margin is not above 0", value=margin, valid="a finite number above 0")
