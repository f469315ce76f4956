"""The durable shards of a capture: what one batch of prompts has given, committed before the next one is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from nullarm.errors import IntegrityError
from nullarm.protocols.residual.reading.rows import Row
from nullarm.store.cell import CellWriter
from nullarm.study.identity import content_hash

PARTS = ("scalars", "topk", "tracked", "sample")
"""Tables of a shard; `sample` holds the residuals that enter the whole-layer metrics."""

SAMPLE_PROMPTS = "prompts"


class Shards:
    """One shard per batch, named by what the batch holds: other batches (another batch size) have other names.

    Args:
        writer: Of the cell.
        batches: All batches.

    Attributes:
        names: Of the shards, by number of the batch.
    """

    def __init__(self, writer: CellWriter, batches: Sequence[Sequence[Row]]) -> None:
        self._writer = writer
        self.batches = batches
        self.names = [f"{i:05d}-{_fingerprint(batch)}" for i, batch in enumerate(batches)]

    def open(self) -> list[int]:
        """Numbers of the batches whose shard is not there, or not whole."""
        return [i for i, name in enumerate(self.names) if not all(self._has(part, name) for part in PARTS)]

    def commit(self, index: int, tables: Mapping[str, pa.Table]) -> None:
        """Write the shard of a batch; what a killed attempt has left of it stays as it is."""
        for part in PARTS:
            self._writer.table_chunk(f"{part}-{self.names[index]}", partial(tables.__getitem__, part))

    def tables(self, part: str) -> Iterator[pa.Table]:
        """One table of every shard, in the order of the batches; one is in memory at a time."""
        for index, name in enumerate(self.names):
            yield self._writer.table_chunk(f"{part}-{name}", partial(_missing, index))

    def _has(self, part: str, name: str) -> bool:
        return self._writer.has_chunk(f"{part}-{name}")


def sample_table(residuals: Mapping[str, Tensor], prompts: npt.NDArray[Any]) -> pa.Table:
    """Sampled residuals as a table, one row per layer from −1 up, in the models' own dtype, bit for bit.

    Args:
        residuals: By run, [layers + 1, n, d_model].
        prompts: [n] index of the prompt of each position.
    """
    layers = len(next(iter(residuals.values())))
    columns = {name: [_bytes(layer) for layer in stream.cpu()] for name, stream in residuals.items()}
    return pa.table({SAMPLE_PROMPTS: [prompts.tolist()] * layers, **columns})


def sampled(tables: Sequence[pa.Table], dtype: torch.dtype, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The residuals of `sample_table` put together again: by run, [layers + 1, n, d_model]."""
    return {
        name: torch.cat([_tensor(table[name].to_pylist(), dtype, width) for table in tables], dim=1)
        for name, width in widths.items()
    }


def _fingerprint(batch: Sequence[Row]) -> str:
    return content_hash([[*row.key, list(row.left.ids), list(row.right.ids)] for row in batch])[:12]


def _missing(index: int) -> pa.Table:
    raise IntegrityError(f"the shard of batch {index} is gone", next_command="`nullarm resume` measures it again")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(layers: Sequence[bytes], dtype: torch.dtype, width: int) -> Tensor:
    return torch.stack([torch.frombuffer(bytearray(data), dtype=dtype).reshape(-1, width) if data
                        else torch.empty(0, width, dtype=dtype) for data in layers])  # fmt: skip
