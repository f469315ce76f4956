"""Finished evaluations, as arrays over items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nullarm.analysis import measured_cells
from nullarm.protocols.kv_communication.parameters import Link
from nullarm.protocols.kv_communication.tables import EVALUATE, ITEMS, LATENCY, SECONDS
from nullarm.stats.arrays import Floats
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell

TRANSFER, TOTAL = "transfer_s", "total_s"


@dataclass(frozen=True)
class Evaluation:
    """One arm on one data set at one seed."""

    cell: Cell
    finished: FinishedCell
    root: Path
    """The study directory."""

    @property
    def arm(self) -> str:
        """Name of the channel."""
        return str(self.cell.arm)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.cell.settings["dataset"])

    @property
    def channel(self) -> Mapping[str, Any]:
        """The channel as plain data."""
        channel: Mapping[str, Any] = self.cell.settings["channel"]
        return channel

    @property
    def fused(self) -> bool:
        """Whether a cache is sent."""
        return bool(self.channel["via"] == "fuser")

    @property
    def sends(self) -> bool:
        """Whether anything crosses the wire."""
        return self.channel["via"] in ("fuser", "text")

    @property
    def is_option(self) -> bool:
        """Whether it may be on the frontier of caches: the receiver alone, or a cache that one would send.

        That is no control's, no oracle's, nothing legacy. Text is another way, compared apart.
        """
        if not self.fused:
            return bool(self.channel["via"] == "receiver")
        oracle = self.channel["order"] == "delta" and self.channel["proportion"] < 1
        legacy = self.channel["fusion"] != "whole" or self.channel["alignment"] != "offsets"
        return self.channel["sharer_cache"] == "own" and not oracle and not legacy

    @property
    def usable(self) -> bool:
        """Whether its numbers may be compared."""
        return self.finished.record.outcome == "ok"

    @cached_property
    def table(self) -> Any:
        """The per-item table."""
        return self.finished.table(ITEMS)

    @cached_property
    def items(self) -> npt.NDArray[np.str_]:
        """[items] ids."""
        return np.array(self.table["item"].to_pylist(), dtype=str)

    @cached_property
    def clusters(self) -> npt.NDArray[np.str_] | None:
        """[items] clusters, an item without one being its own; None when no item has one."""
        known = self.table["cluster"].to_pylist()
        if all(label is None for label in known):
            return None
        pairs = zip(known, self.items.tolist(), strict=True)
        return np.array([item if label is None else label for label, item in pairs], dtype=str)

    @cached_property
    def wire_bytes(self) -> Floats:
        """[items] what crossed the wire: messages and, in two rounds, the request for them."""
        return self.numbers("message_bytes") + self.numbers("request_bytes")

    @property
    def formula_bytes(self) -> float | None:
        """Mean size of the messages by the formula; None where it depends on the data."""
        return None if self.table["formula_bytes"].null_count else self.mean("formula_bytes")

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Mean seconds an item of each part, of the transfer at the declared link, and of all of them in turn."""
        table = self.finished.table(LATENCY)
        parts = {name: float(np.mean(table[name])) for name in SECONDS}
        parts[TRANSFER] = float(np.mean(self._transfers)) if self.sends else 0.0
        return {**parts, TOTAL: sum(parts.values())}

    @property
    def link(self) -> Link:
        """The declared link."""
        return Link.model_validate(self.cell.settings["link"])

    def numbers(self, column: str) -> Floats:
        """[items] of a column of numbers."""
        return self.table[column].to_numpy(zero_copy_only=False).astype(np.float64)  # type: ignore[no-any-return]

    def mean(self, column: str) -> float:
        """Mean over the items."""
        return float(self.numbers(column).mean())

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Items that ended in an error, and the errors."""
        pairs = zip(self.items.tolist(), self.table["error"].to_pylist(), strict=True)
        return [(item, error) for item, error in pairs if error is not None]

    @property
    def _transfers(self) -> list[float]:
        link, sent, asked = self.link, self.numbers("message_bytes"), self.numbers("request_bytes")
        return [link.seconds(*pair) for pair in zip(sent.tolist(), asked.tolist(), strict=True)]


def evaluations(store: StudyStore) -> list[Evaluation]:
    """Every finished evaluation of the plan, the unusable ones too, in plan order."""
    return [Evaluation(m.cell, m.finished, store.paths.root) for m in measured_cells(store, (EVALUATE,))]


def usable(found: Iterable[Evaluation]) -> list[Evaluation]:
    """Those whose numbers may be compared."""
    return [evaluation for evaluation in found if evaluation.usable]
