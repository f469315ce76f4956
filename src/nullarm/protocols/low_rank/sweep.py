"""One layer at a time: what each rank of each method loses of a matrix, of its outputs, and of the likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import fsum
from typing import Any

import pyarrow as pa

from nullarm.protocols.low_rank.allocation.settings import share_of
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.factored.factors import Factors
from nullarm.protocols.low_rank.factored.install import replaced
from nullarm.protocols.low_rank.methods.decompose import Truncated, decompose
from nullarm.protocols.low_rank.methods.reconstruction import output_error, weight_error
from nullarm.protocols.low_rank.methods.settings import LowRank
from nullarm.protocols.low_rank.perplexity.likelihoods import window_likelihoods
from nullarm.protocols.low_rank.perplexity.windows import Window
from nullarm.protocols.low_rank.slots import Group, linear

_TYPES = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "float": pa.float64()}


@dataclass(frozen=True)
class Swept:
    """One group at one rank, the rest of the model as it was loaded.

    Attributes:
        layer: Number of the block.
        slots: The matrices, joined by `+`.
        method: Kind of the method.
        rank: Of the basis.
        keep: Numbers of the factors, over those of the matrices.
        above_break_even: Whether the factors are larger than the matrices.
        weight_error: ‖W − W'‖_F / ‖W‖_F.
        output_error: ‖X(W − W')ᵀ‖_F / ‖XWᵀ‖_F over the calibration inputs X.
        delta_nll: Rise of the negative log-likelihood, nats per token of the windows.
    """

    layer: int
    slots: str
    method: str
    rank: int
    keep: float
    above_break_even: bool
    weight_error: float
    output_error: float
    delta_nll: float


@dataclass(frozen=True, eq=False)
class LayerSweep:
    """Compresses one group of matrices after another, each by itself, and reads the same windows with it.

    Attributes:
        model: A causal LM as it was loaded; it is so again after each group.
        windows: What the likelihood is taken of.
        batch_size: Windows in a forward pass.
    """

    model: Any
    windows: Sequence[Window]
    batch_size: int

    def ranks(self, group: Group, method: LowRank, keep: Iterable[float], inputs: InputStatistics) -> list[Swept]:
        """One row per rank, all from one decomposition.

        Args:
            group: The matrices; a method without a shared basis takes one.
            method: How they are compressed.
            keep: Shares of the dense numbers; each is turned into a rank by `rank_at`, and said once.
            inputs: What the matrices read, on their device.

        Raises:
            ModelError: The model has no such matrices, or inputs cannot be whitened.
            InvalidResult: The likelihood of a window is no finite number.
        """
        weights = [linear(self.model, group.layer, slot).weight for slot in group.slots]
        found = decompose(method, weights, inputs)
        rows = []
        for rank in dict.fromkeys(rank_at(group, share) for share in keep):
            basis, factors = found.truncate(rank)
            rows.append(
                Swept(
                    layer=group.layer,
                    slots="+".join(group.slots),
                    method=method.kind,
                    rank=rank,
                    keep=group.factored_numbers(rank) / group.dense_numbers,
                    above_break_even=rank > group.break_even,
                    weight_error=weight_error(weights, basis, factors),
                    output_error=output_error(weights, basis, factors, inputs),
                    delta_nll=self._rise(group, (basis, factors)),
                )
            )
        return rows

    def _rise(self, group: Group, truncated: Truncated) -> float:
        before = self._before
        with replaced(self.model, {(group.layer, group.slots): Factors(group.slots, *truncated)}):
            return self._nll() - before

    @cached_property
    def _before(self) -> float:
        return self._nll()

    def _nll(self) -> float:
        """Nats per token, of the model as it is now."""
        rows = window_likelihoods(self.model, self.windows, batch_size=self.batch_size)
        return fsum(row.nll for row in rows) / sum(row.tokens for row in rows)


def rank_at(group: Group, keep: float) -> int:
    """The largest rank whose factors hold at most a share `keep` of the numbers; at least 1, at most the full rank."""
    return max(1, min(group.max_rank, share_of(keep, group.dense_numbers) // group.factored_numbers(1)))


def swept_table(rows: Iterable[Swept]) -> pa.Table:
    """One row each, the fields of `Swept` as columns."""
    schema = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(Swept)])
    return pa.Table.from_pylist([asdict(row) for row in rows], schema)
