"""Statistics of one singular spectrum. NumPy only: allocation and reports need them where torch is not.

All take singular values `[k]` in descending order and are scale-free but for `frobenius_norm`. A zero matrix has no
direction, so its stable and effective ranks and its shares of energy are None, never 0/0; its energy rank is 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# k values of equal size reach k/n of the energy up to rounding of the last bit; without this slack ten equal values
# would need a tenth for 90 %.
_ENERGY_SLACK = 1e-12


def relative_spectrum(singular_values: ArrayLike) -> NDArray[np.float64]:
    """σ / σ₁ `[k]`, empty for a zero matrix. Squares of it can neither overflow nor all vanish."""
    values = np.asarray(singular_values, dtype=np.float64)
    if values.size == 0 or values[0] == 0.0:
        return np.empty(0)
    relative: NDArray[np.float64] = values / values[0]
    return relative


def frobenius_norm(singular_values: ArrayLike) -> float:
    """√Σσ²."""
    relative = relative_spectrum(singular_values)
    if relative.size == 0:
        return 0.0
    return float(np.asarray(singular_values, dtype=np.float64)[0] * math.sqrt(np.sum(relative**2)))


def stable_rank(singular_values: ArrayLike) -> float | None:
    """Σσ² / σ₁² (Rudelson and Vershynin 2007), in [1, k]."""
    relative = relative_spectrum(singular_values)
    return float(np.sum(relative**2)) if relative.size else None


def effective_rank(singular_values: ArrayLike) -> float | None:
    """exp(−Σ p ln p) with p = σ/Σσ (Roy and Vetterli 2007), in [1, k]."""
    relative = relative_spectrum(singular_values)
    if relative.size == 0:
        return None
    share = relative / relative.sum()
    share = share[share > 0.0]
    return float(np.exp(-np.sum(share * np.log(share))))


def energy_rank(singular_values: ArrayLike, threshold: float) -> int:
    """Least k with Σ_{i≤k} σ² ≥ threshold · Σσ²; 0 for a zero matrix."""
    relative = relative_spectrum(singular_values)
    if relative.size == 0:
        return 0
    energy = np.cumsum(relative**2)
    return int(np.searchsorted(energy, threshold * energy[-1] * (1.0 - _ENERGY_SLACK), side="left")) + 1


def energy_share(singular_values: ArrayLike, rank: int) -> float | None:
    """Σ_{i≤rank} σ² / Σσ², in [0, 1]; 1 from rank k on."""
    energy = relative_spectrum(singular_values) ** 2
    return float(energy[:rank].sum() / energy.sum()) if energy.size else None
