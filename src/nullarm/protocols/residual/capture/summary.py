"""From positions to prompts and layers: what is judged, and the trajectories of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nullarm.protocols.residual.capture.whole_layer import trajectory
from nullarm.protocols.residual.runs import Passes
from nullarm.protocols.residual.tables import DIVERGENCES, LAYERS, METRICS, SHARES

GROUP = ["prompt", "variant", "kind", "record", "layer"]


def prompt_means(scalars: pa.Table) -> pa.Table:
    """One row per prompt, variant, record and layer: each metric's mean over positions, null where there is none."""
    grouped = scalars.group_by(GROUP, use_threads=False).aggregate([(name, "mean") for name in METRICS])
    return grouped.rename_columns([name.removesuffix("_mean") for name in grouped.column_names])


def items_table(means: pa.Table, passes: Passes) -> pa.Table:
    """What a verdict rests on: per prompt and variant the primary comparison's divergences, and the effects' shares.

    `loss_gain` is base − fine-tuned at the last layer: how much likelier fine-tuning made the prompt's own tokens, in
    nats a token. A prompt and its variants are one cluster.
    """
    frame = means.to_pandas()
    frame = frame[frame["layer"] >= 0]
    index = frame[["prompt", "variant"]].drop_duplicates()
    columns: dict[str, pd.Series[float]] = {}
    pair = _of(frame, "pair", passes.primary.name)
    for name in DIVERGENCES:
        columns[name], columns[f"{name}_final"] = _mean_and_final(pair, name)
    columns["loss_gain"] = -_mean_and_final(pair, "loss_diff")[1]
    factorial = _of(frame, "factorial", "factorial")
    for name in SHARES:
        columns[name] = _mean_and_final(factorial, name)[0]
    keys = list(index.itertuples(index=False, name=None))
    return pa.table(
        {
            "item": [f"{prompt}:{variant}" for prompt, variant in keys],
            "cluster": [str(prompt) for prompt, _ in keys],
            **{
                name: pa.array([_value(series, key) for key in keys], pa.float64())
                for name, series in columns.items()
                if len(series) and series.notna().all()
            },
        }
    )


def trajectories(means: pa.Table, rng: np.random.Generator, resamples: int) -> pa.Table:
    """Per record, metric and layer the mean over prompts, with a bootstrap interval over prompts (see `LAYERS`).

    Every draw resamples the same prompts for all metrics; a prompt's variants are averaged first.
    """
    frame = means.to_pandas()
    seed = int(rng.integers(2**32))
    rows: list[dict[str, Any]] = []
    for (kind, record), part in frame.groupby(["kind", "record"], sort=False):
        by_prompt = part.groupby(["layer", "prompt"], sort=True)[list(METRICS)].mean()
        for name in METRICS:
            grid = by_prompt[name].unstack("layer").dropna(axis="columns")
            if grid.empty:
                continue
            values = grid.to_numpy(np.float64)
            mean, low, high = trajectory(values, np.random.default_rng(seed), resamples)
            rows += _rows(kind, record, name, grid.columns, mean, low, high)
    return pa.Table.from_pylist(rows, LAYERS)


def layer_rows(kind: str, record: str, layer: int, found: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    """Rows of whole-layer metrics: metric to (value, low, high)."""
    return [
        {"kind": kind, "record": record, "layer": layer, "metric": n, "value": v, "low": low, "high": high}
        for n, (v, low, high) in found.items()
    ]


def _rows(
    kind: Any, record: Any, name: str, layers: Iterable[Any], mean: Any, low: Any, high: Any
) -> Iterable[dict[str, Any]]:
    for i, layer in enumerate(layers):
        ends = (None, None) if low is None else (float(low[i]), float(high[i]))
        yield from layer_rows(kind, record, int(layer), {name: (float(mean[i]), *ends)})


def _of(frame: pd.DataFrame, kind: str, record: str) -> pd.DataFrame:
    return frame[(frame["kind"] == kind) & (frame["record"] == record)]


def _mean_and_final(part: pd.DataFrame, name: str) -> tuple[pd.Series[float], pd.Series[float]]:
    """Per (prompt, variant): the mean over layers, and the value at the last layer."""
    if part.empty:
        return pd.Series(dtype=float), pd.Series(dtype=float)
    keyed = part.set_index(["prompt", "variant", "layer"])[name]
    final = keyed.xs(part["layer"].max(), level="layer")
    return keyed.groupby(level=["prompt", "variant"]).mean(), final


def _value(series: pd.Series[float], key: tuple[Any, ...]) -> float:
    return float(series.loc[key])
