"""Singular spectra of a model's matrices: of the weights alone, and of what they do to the inputs that they get.

A matrix `[m, n]` with s = min(m, n) costs 2 m n s FLOP for its Gram matrix and some 9 s³ for the eigendecomposition, in
float64, and twice that with the whitened one: of Llama-3.1-8B's up
projection, s = 4096, 0.5 and 0.6 TFLOP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.decompose import Decomposition, decompose
from nullarm.protocols.low_rank.methods.settings import Svd, SvdLlm
from nullarm.protocols.low_rank.slots import INPUTS, Group, linear
from nullarm.stats.spectrum import effective_rank, energy_rank, energy_share

WEIGHT, WHITENED = "weight", "whitened"
"""Metrics: σ of W, and of W C with C Cᵀ = XᵀX over the calibration inputs X (and the ridge of `SvdLlm`)."""
ENERGIES = (50, 75, 90, 95, 99)
"""Per cent of Σσ² that a rank is named for."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one matrix, or of several that share a basis, one above the other.

    Attributes:
        group: The matrices.
        metric: `weight` or `whitened`.
        values: `[max_rank]`, descending. Values below 1e-8 of the largest are rounding.
    """

    group: Group
    metric: str
    values: npt.NDArray[np.float64]

    @property
    def slot(self) -> str:
        """Slots of the matrices, joined by `+`."""
        return "+".join(self.group.slots)


def spectra(
    model: Any, groups: Sequence[Group], statistics: Mapping[tuple[int, str], InputStatistics]
) -> Iterator[Spectrum]:
    """Spectra of matrices, group by group.

    Args:
        model: A causal LM as it was loaded.
        groups: Of the layers that are looked at.
        statistics: Of their inputs, by layer and name (see `calibration.collect`); a group without has no `whitened`.

    Raises:
        ModelError: The model has no such matrices, or inputs cannot be whitened.
    """
    for group in groups:
        weights = [linear(model, group.layer, slot).weight for slot in group.slots]
        yield _spectrum(group, WEIGHT, decompose(Svd(), weights))
        inputs = statistics.get((group.layer, INPUTS[group.slots[0]]))
        if inputs is not None:
            yield _spectrum(group, WHITENED, decompose(SvdLlm(), weights, inputs))


def singular_values_table(found: Iterable[Spectrum]) -> pa.Table:
    """One row per singular value: `layer`, `slot`, `metric`, `index` from 0, `singular_value`."""
    parts = [
        pa.table(
            {
                "layer": np.full(len(s.values), s.group.layer, np.int64),
                "slot": pa.array([s.slot] * len(s.values), pa.string()),
                "metric": pa.array([s.metric] * len(s.values), pa.string()),
                "index": np.arange(len(s.values), dtype=np.int64),
                "singular_value": s.values,
            }
        )
        for s in found
    ]
    return pa.concat_tables(parts)


def ranks_table(found: Iterable[Spectrum], ranks: Sequence[int] = ()) -> pa.Table:
    """One row per spectrum: `layer`, `slot`, `metric`, the shape, and where its energy is.

    `r50` to `r99` are the least ranks with so many per cent of Σσ²; `effective_rank` is that of Roy and Vetterli;
    `energy_at_break_even` and `energy_<rank>` are the shares of Σσ² at the break-even rank and at those asked for. Of a
    matrix of zeros, ranks are 0 and the rest is null.

    Args:
        found: The spectra.
        ranks: Ranks to give the energy at.
    """
    rows = [_summary(spectrum, ranks) for spectrum in found]
    whole = ("layer", "rows", "columns", "break_even", *(f"r{percent}" for percent in ENERGIES))
    text = ("slot", "metric")
    fields = [(n, pa.int64() if n in whole else pa.string() if n in text else pa.float64()) for n in rows[0]]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _spectrum(group: Group, metric: str, decomposition: Decomposition) -> Spectrum:
    return Spectrum(group, metric, decomposition.singular_values.cpu().numpy())


def _summary(spectrum: Spectrum, ranks: Sequence[int]) -> dict[str, Any]:
    group, values = spectrum.group, spectrum.values
    return {
        "layer": group.layer,
        "slot": spectrum.slot,
        "metric": spectrum.metric,
        "rows": sum(group.out_features),
        "columns": group.in_features,
        "break_even": group.break_even,
        **{f"r{percent}": energy_rank(values, percent / 100) for percent in ENERGIES},
        "effective_rank": effective_rank(values),
        "energy_at_break_even": energy_share(values, group.break_even),
        **{f"energy_{rank}": energy_share(values, rank) for rank in ranks},
    }
