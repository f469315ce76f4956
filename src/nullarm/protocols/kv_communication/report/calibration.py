"""What quantisation does to the caches: errors of each stream, and what they cost the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nullarm.protocols.kv_communication.geometry import HALVES
from nullarm.protocols.kv_communication.tables import CALIBRATE, SENSITIVITY, STATISTICS
from nullarm.report import Axis, Block, Heatmap, HeatmapPanel, Plot, PlotPanel, Series, Table
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore

MEANS = ("relative_error", "largest_error", "cosine", "bytes_per_token")

Row = Mapping[str, Any]
Cells = tuple[str, ...]
"""Ids of the cells that a block rests on."""


def calibration(store: StudyStore) -> Iterator[Block]:
    """Of each fuser, over the codecs that were measured of it, each at the first seed that is finished."""
    for fuser, measured in _calibrations(store).items():
        cells = tuple(cell_id for cell_id, _ in measured)
        statistics, sensitivities = _rows(measured, STATISTICS), _rows(measured, SENSITIVITY)
        if statistics:
            yield _means(fuser, cells, statistics)
            yield _rate_distortion(fuser, cells, statistics)
            yield _errors(fuser, cells, statistics)
        for codec in dict.fromkeys(row["codec"] for row in sensitivities):
            yield _damage(fuser, cells, codec, [row for row in sensitivities if row["codec"] == codec])


def _calibrations(store: StudyStore) -> dict[str, list[tuple[str, FinishedCell]]]:
    """By fuser, the cells of its codecs, one each, with what they hand on."""
    found: dict[tuple[str, str], tuple[str, FinishedCell]] = {}
    for cell in store.plan:
        finished = store.finished(cell.id) if cell.stage == CALIBRATE else None
        if finished and finished.record.outcome == "ok":
            found.setdefault((cell.parameters["fuser"], cell.parameters["codec_name"]), (cell.id, finished))
    by_fuser: dict[str, list[tuple[str, FinishedCell]]] = {}
    for (fuser, _), measured in found.items():
        by_fuser.setdefault(fuser, []).append(measured)
    return by_fuser


def _rows(measured: Iterable[tuple[str, FinishedCell]], name: str) -> list[Row]:
    tables = (found.table(name) for _, found in measured if name in found.record.artefacts)
    return [row for table in tables for row in table.to_pylist()]


def _means(name: str, cells: Cells, statistics: Sequence[Row]) -> Table:
    groups = _by_codec(statistics)
    return Table(
        title=f"{name}: quantisation errors, mean over streams",
        columns=("codec", "streams", "relative error", "largest error", "cosine", "bytes a token, all streams"),
        rows=tuple((codec, len(rows), *_mean_values(rows)) for codec, rows in groups.items()),
        cells=tuple(cells for _ in groups),
        caption="At the first seed. Relative error: ‖x̂ − x‖ / ‖x‖ of a stream (keys or values of one layer). Largest "
        "error: relative to the largest magnitude.",
    )


def _rate_distortion(name: str, cells: Cells, statistics: Sequence[Row]) -> Plot:
    """Of two codecs that cost the same, the lower one is the better."""
    points = {codec: _mean_values(rows) for codec, rows in _by_codec(statistics).items()}
    series = tuple(
        Series(name=codec, x=[size], y=[error], hover=[codec], cells=(cells,), style="points")
        for codec, (error, *_, size) in points.items()
        if error > 0  # which a logarithmic axis cannot show
    )
    return Plot(
        title=f"{name}: bytes against error of each codec",
        x=Axis("bytes a token, all streams", log=True),
        y=Axis("relative error, mean over streams", log=True),
        panels=(PlotPanel(name, series),),
        caption="The errors of the table above. What they cost the answer is another matter: see the streams below, "
        "and the accuracies.",
    )


def _mean_values(rows: Sequence[Row]) -> tuple[float, ...]:
    *means, size = (sum(row[name] for row in rows) for name in MEANS)
    return (*(total / len(rows) for total in means), size)


def _errors(name: str, cells: Cells, statistics: Sequence[Row]) -> Heatmap:
    panels = tuple(
        _panel(codec, cells, rows, "relative_error") for codec, rows in _by_codec(statistics).items()
    )  # fmt: skip
    return Heatmap(f"{name}: relative error by layer and half", "half", "layer", "relative error", panels, "log")


def _damage(name: str, cells: Cells, codec: str, rows: Sequence[Row]) -> Heatmap:
    widths = sorted({row["bits"] for row in rows})
    panels = tuple(_panel(_width(bits), cells, [row for row in rows if row["bits"] == bits], "kl") for bits in widths)
    return Heatmap(
        f"{name}: what {codec} in one stream alone costs the answer", "half", "layer", "KL, nats", panels, "log",
        caption="Divergence of the answer's distribution from that with the cache as it is, mean over items.",
    )  # fmt: skip


def _width(bits: int) -> str:
    return "1 bit" if bits == 1 else f"{bits} bits"


def _panel(title: str, cells: Cells, rows: Iterable[Row], value: str) -> HeatmapPanel:
    """Layers from the top down, the last one first."""
    known = {(row["layer"], row["half"]): row[value] for row in rows}
    layers = sorted({layer for layer, _ in known}, reverse=True)
    return HeatmapPanel(
        title=title,
        x=HALVES,
        y=tuple(str(layer) for layer in layers),
        values=[[known.get((layer, half)) for half in HALVES] for layer in layers],
        cells=cells,
    )


def _by_codec(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["codec"], []).append(row)
    return groups
