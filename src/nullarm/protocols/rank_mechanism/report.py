"""The report of a rank-mechanism study: rank maps, spectra, paired seeds, arms, distances of the shuffles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from nullarm.analysis import Analysis, Measured, measured_cells
from nullarm.protocols.findings import document_of
from nullarm.protocols.rank_mechanism.arms import ARMS, AUDITED, SHUFFLED, map_key
from nullarm.protocols.rank_mechanism.module_names import layer_index, module_kind
from nullarm.report import (
    Axis,
    Block,
    Document,
    Heatmap,
    HeatmapPanel,
    Pair,
    PairedPlot,
    Plot,
    PlotPanel,
    Point,
    Section,
    Series,
    Table,
    Value,
)
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import ITEMS
from nullarm.study.plan import Cell

SPECTRA_SHOWN = 6
"""Singular values are drawn for this many modules of the first seed: the strongest and the weakest."""


def document(store: StudyStore, analysis: Analysis) -> Document:
    """Verdicts first, then what they rest on."""
    measured = measured_cells(store, ("probe", "retrain"))
    metric = store.lock.study.analysis.metric
    sections = [
        Section("Per seed", tuple(_paired(store, measured, metric))),
        Section("Arms", tuple(_arms(measured, metric))),
        Section("Rank maps", tuple(_maps(store))),
        Section("Spectra", tuple(_spectra(store))),
        Section("How far the controls lie from the audited map", tuple(_distances(store))),
    ]
    return document_of(store, analysis, [section for section in sections if section.blocks])


def _paired(store: StudyStore, measured: Sequence[Measured], metric: str) -> Iterator[Block]:
    pairs = []
    for seed in store.lock.study.seeds:
        here = [m for m in measured if m.cell.seed == seed]
        treated = [m for m in here if m.cell.arm == AUDITED]
        controls = [m for m in here if m.cell.arm == SHUFFLED]
        if treated and controls:
            points = tuple(_point(m, metric) for m in controls)
            pairs.append(Pair(f"seed {seed}", _point(treated[0], metric), points))
    if pairs:
        yield PairedPlot(
            title="The audited map against its shuffles, seed by seed", treatment=AUDITED, control=SHUFFLED,
            pairs=tuple(pairs), x_label="seed", y=Axis(f"mean {metric} on test"),
        )  # fmt: skip


def _point(measured: Measured, metric: str) -> Point:
    return Point(_mean(measured, metric), measured.cell.label, (measured.cell.id,))


def _mean(measured: Measured, metric: str) -> float:
    return fmean(measured.finished.table(ITEMS)[metric].to_pylist())


def _arms(measured: Sequence[Measured], metric: str) -> Iterator[Block]:
    """One row per trained cell: what it scored, with how many parameters."""
    if not measured:
        return
    metrics = tuple(dict.fromkeys((metric, "accuracy", "log_likelihood")))
    present = dict.fromkeys(str(m.cell.arm) for m in measured)
    yield Table(
        title="Every trained cell",
        columns=("arm", "replicate", "seed", *metrics, "LoRA parameters", "÷ audited", "training loss"),
        rows=tuple(_row(m, metrics) for m in measured),
        cells=tuple((m.cell.id,) for m in measured),
        caption="; ".join(f"{arm}: {ARMS[arm]}" for arm in present),
    )


def _row(measured: Measured, metrics: Sequence[str]) -> tuple[Value, ...]:
    cell, known = measured.cell, measured.finished.record.metrics
    rest = [known.get(name) for name in ("lora_parameters", "parameters_over_audited", "train_loss")]
    return (cell.arm, cell.replicate, cell.seed, *(_mean(measured, metric) for metric in metrics), *rest)


def _finished(store: StudyStore, stage: str) -> Iterator[tuple[Cell, FinishedCell]]:
    for cell in store.plan:
        if cell.stage == stage and (done := store.finished(cell.id)) and done.record.outcome == "ok":
            yield cell, done


def _maps(store: StudyStore) -> Iterator[Block]:
    """Rank maps of the first seed as layer × module, one panel per arm."""
    for cell, done in _finished(store, "allocate"):
        maps: Mapping[str, Mapping[str, int]] = done.json("allocation")["maps"]
        keys = _map_keys(store, maps)
        trained = {
            map_key(str(c.arm), c.replicate): (c, d) for c, d in _finished(store, "retrain") if c.seed == cell.seed
        }
        panels = [_panel(key, maps[key], (cell.id, *((trained[key][0].id,) if key in trained else ()))) for key in keys]
        panels += [_panel(arm, d.json("ranks"), (c.id,)) for arm, (c, d) in trained.items() if arm not in maps]
        yield Heatmap(
            title=f"Rank of each module, seed {cell.seed}", x_label="module", y_label="layer", value_label="rank",
            panels=tuple(panels), scale="log",
        )  # fmt: skip
        return


def _map_keys(store: StudyStore, maps: Mapping[str, Any]) -> list[str]:
    arms = store.lock.study.arms
    keys = [map_key(name, k) for name, arm in arms.items() for k in range(1, arm.replicates + 1)]
    return [key for key in dict.fromkeys(keys) if key in maps]


def _panel(title: str, ranks: Mapping[str, int], cells: tuple[str, ...]) -> HeatmapPanel:
    kinds = list(dict.fromkeys(module_kind(name) for name in ranks))
    layers = sorted({layer_index(name) or 0 for name in ranks})
    by_place = {(layer_index(name) or 0, module_kind(name)): (name, rank) for name, rank in ranks.items()}
    return HeatmapPanel(
        title=title,
        x=tuple(kind.rpartition(".")[2] for kind in kinds),
        y=tuple(str(layer) for layer in layers),
        values=[
            [by_place[layer, kind][1] if (layer, kind) in by_place else None for kind in kinds] for layer in layers
        ],
        hover=[[by_place.get((layer, kind), ("", 0))[0] for kind in kinds] for layer in layers],
        cells=cells,
    )


def _spectra(store: StudyStore) -> Iterator[Block]:
    """Relative singular values of the strongest and weakest modules of the first seed, and the audit's table."""
    for cell, done in _finished(store, "audit"):
        modules = done.json("audit")["modules"]
        ordered = sorted(modules, key=lambda m: m["energy_rank_90"])
        half = SPECTRA_SHOWN // 2
        shown = ordered[:half] + ordered[-half:] if len(ordered) > SPECTRA_SHOWN else ordered
        series = tuple(_spectrum(module, cell.id) for module in shown)
        yield Plot(
            title=f"Singular values of the probe's update, seed {cell.seed}", panels=(PlotPanel("", series),),
            x=Axis("index"), y=Axis("σᵢ / σ₁", log=True),
        )  # fmt: skip
        columns = ("name", "r", "stable_rank", "effective_rank", "energy_rank_90", "energy_rank_99", "utilization",
                   "frobenius_norm_scaled", "udr")  # fmt: skip
        yield Table(
            title=f"Audit of the probe, seed {cell.seed}",
            columns=columns,
            rows=tuple(tuple(module.get(column) for column in columns) for module in modules),
            cells=tuple((cell.id,) for _ in modules),
        )
        return


def _spectrum(module: Mapping[str, Any], cell_id: str) -> Series:
    sigma = module["singular_values"]
    relative = [value / sigma[0] if sigma[0] else None for value in sigma]
    return Series(
        name=module["name"], x=list(range(1, len(sigma) + 1)), y=relative, cells=((cell_id,),), style="line+points"
    )


def _distances(store: StudyStore) -> Iterator[Block]:
    rows: list[tuple[str | int | float | bool | None, ...]] = []
    cells = []
    for cell, done in _finished(store, "allocate"):
        allocation = done.json("allocation")
        for arm in _map_keys(store, allocation["maps"]):
            distance = allocation["distances"][arm]
            rows.append((cell.seed, arm, distance["hamming"], distance["rank_change"], allocation["parameters"][arm],
                         allocation["distinct_permutations"]))  # fmt: skip
            cells.append((cell.id,))
    if rows:
        columns = ("seed", "arm", "modules with another rank", "Σ|Δr|", "LoRA parameters", "distinct permutations")
        yield Table(title="Distance of each map from `audited`", columns=columns, rows=tuple(rows), cells=tuple(cells))
