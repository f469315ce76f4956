"""Positions that enter the whole-layer metrics: few enough to be kept, drawn before anything is captured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nullarm.protocols.residual.reading.rows import Row

Ints = npt.NDArray[np.int64]


def sample_positions(rows: Sequence[Row], tokens: int, skip: int, seed: int) -> dict[tuple[int, str], Ints]:
    """For each row, which of its compared positions enter: all of them, or `tokens` drawn over all rows.

    Args:
        rows: All rows of a capture, in their order.
        tokens: Most positions in all.
        skip: Leading positions of the text that never enter.
        seed: Of the draw.

    Returns:
        Row key to indices into its compared positions, ascending; empty for a row that has none.
    """
    eligible = [(row.key, index) for row in rows for index, place in enumerate(row.positions) if place >= skip]
    if len(eligible) > tokens:
        drawn = np.random.default_rng(seed).choice(len(eligible), size=tokens, replace=False)
        eligible = [eligible[i] for i in sorted(drawn.tolist())]
    chosen: dict[tuple[int, str], list[int]] = {row.key: [] for row in rows}
    for key, index in eligible:
        chosen[key].append(index)
    return {key: np.array(indices, np.int64) for key, indices in chosen.items()}
