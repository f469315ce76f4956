"""Stage `calibrate`: one codec on one fuser, its items in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from communication_models import prompts, receiver
from kv_studies import study

from nullarm.conduct import lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.protocols.kv_communication.cells import calibrate
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill
from nullarm.protocols.kv_communication.tables import SENSITIVITY, STATISTICS
from nullarm.store.record import FinishedCell
from nullarm.study.spec import Study


def test_rows_in_batches_are_those_of_all_at_once() -> None:
    model, rows = receiver(), [*prompts(3, 7, 4, 5, 2, seed=1), []]
    whole = prefill(model, rows)
    for size in (1, 2, 4, 6, 9):
        found = calibrate.prefilled(model, rows, size)
        assert torch.equal(found.mask, whole.mask)
        assert torch.equal(found.positions, whole.positions)
        real = whole.mask[:, None, :, None]
        for mine, theirs in zip(found.kv, whole.kv, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a * real, b * real, rtol=1e-4, atol=1e-5)
    empty = calibrate.prefilled(model, [[], []], 1)
    assert empty.mask.shape == (2, 1)


def asked(**parameters: Any) -> Study:
    channels = {"mixed": {"codec": "r", "allocation": {"bits": [1, 2], "mean_bits": 2}}, "eight": {"codec": "int8"}}
    codecs = {"r": {"kind": "rotated", "bits": 2, "group": 16}}
    return study(channels, codecs=codecs, milestones=[1, 2, 5], **parameters)


def calibrated(root: Path, **parameters: Any) -> dict[str, FinishedCell]:
    store = lay_down(prepare(asked(**parameters)), root)
    run(store, InlineEngine())
    cells = [cell for cell in store.plan if cell.stage == "calibrate"]
    return {str(cell.slice): found for cell in cells if (found := store.finished(cell.id))}


def test_a_cell_has_one_codec_and_sensitivities_where_bits_are_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(model: Any, ids: Sequence[list[int]]) -> Prefilled:
        sizes.append(len(ids))
        return prefill(model, ids)

    monkeypatch.setattr(calibrate, "prefill", counted)
    found = calibrated(tmp_path, calibration_items=3, evaluation_batch_size=2)

    assert found.keys() == {"main-r", "main-int8"}
    assert set(sizes) == {1, 2}
    for name, codec in (("main-r", "r"), ("main-int8", "int8")):
        statistics = found[name].table(STATISTICS).to_pylist()
        assert {row["codec"] for row in statistics} == {codec}
        assert len(statistics) == found[name].record.metrics["streams"]
    assert SENSITIVITY not in found["main-int8"].record.artefacts
    sensitivities = found["main-r"].table(SENSITIVITY).to_pylist()
    assert [(row["codec"], row["bits"]) for row in sensitivities[:2]] == [("r", 1), ("r", 2)]
