"""Finished captures of protocol `residual` with known numbers: everything but the models.

Two prompts (of 3 and 4 tokens) under two variants, two blocks, so layers −1, 0 and 1. Every number is a function of
where it stands, exact in fp32: `scalar`, `shift`, `logit`. One is planted: `kl_div` of every comparison is 64 at
`HOTSPOT`. Tables have one row group per prompt, as batches of one prompt would leave them.

    store = capture_store(tmp_path, passes=multi_pass())
    finished = finish_capture(store, next(iter(store.plan)))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nullarm.protocols.residual.runs import Passes, single_pass
from nullarm.protocols.residual.tables import (
    CAPTURE,
    FACTORIAL_METRICS,
    LAYERS,
    LAYERS_NAME,
    METRICS,
    PAIR_METRICS,
    PROMPTS,
    PROMPTS_NAME,
    RUN_METRICS,
    SCALARS,
    SCALARS_NAME,
    TOPK,
    TOPK_NAME,
    TRACKED,
    TRACKED_NAME,
    VOCABULARY,
    VOCABULARY_NAME,
)
from nullarm.store.cell import CellWriter
from nullarm.store.record import FinishedCell, Outcome
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell, make_plan
from nullarm.study.spec import Study
from support.rehearsals import writer_of

TOKENS = (("A", "Ġred", "Ġhat"), ("=SUM", "\n", "Ġno", "\x1b[31m"))
"""Token strings of each prompt; some of them must not act in a terminal or a spreadsheet."""
VARIANTS = ("identity", "mirror_halves")
BLOCKS = 2
TOP_K = 2
TRACKED_TOKENS = {3: "ĠYes", 5: "ĠNo"}
HOTSPOT = {"prompt": 1, "variant": "identity", "layer": 1, "position": 2, "value": 64.0}
"""Where `kl_div` is largest, in every comparison."""
STARTED = "20260102_030405"
SFT = "org/little-Instruct@v1"

_KINDS = {"run": RUN_METRICS, "pair": PAIR_METRICS, "factorial": FACTORIAL_METRICS}
_AT_LAST = ("loss", "rank", "loss_diff")
"""Not there at the last position, where no token follows."""


def scalar(prompt: int, variant: str, record: str, layer: int, position: int, metric: str) -> float | None:
    """The number in the table of scalars; None where there is none."""
    if metric in _AT_LAST and position == len(TOKENS[prompt]) - 1:
        return None
    if layer == -1 and metric in ("norm_delta", "cosine_prev"):
        return None
    at = {"prompt": prompt, "variant": variant, "layer": layer, "position": position}
    if metric == "kl_div" and at.items() <= HOTSPOT.items():
        return float(HOTSPOT["value"])  # type: ignore[arg-type]  # the one number among names
    place = 29 * prompt + 17 * VARIANTS.index(variant) + 11 * (layer + 1) + 3 * position
    grain = (place + 5 * list(METRICS).index(metric) + sum(map(ord, record))) % 61 + 1
    return grain / 64 if metric.startswith("cosine") else grain / 8


def shift(prompt: int, record: str, layer: int, position: int, rank: int) -> tuple[int, float]:
    """Token id and size of the `rank`-th largest logit, or shift, from 0; shifts down are its negative."""
    return (prompt + layer + position + rank + len(record)) % 10, (8 + layer + position - 2 * rank) / 4


def logit(prompt: int, variant: str, record: str, layer: int, position: int, token: int) -> float:
    """The logit of a tracked token."""
    return (token + 2 * layer + position + prompt + VARIANTS.index(variant) + sum(map(ord, record)) % 7) / 16


def capture_cell(entry: str, *, passes: Passes | None = None, inputs: dict[str, str] | None = None) -> Cell:
    """The planned cell of one entry."""
    return Cell(
        protocol="residual",
        version=1,
        stage="capture",
        parameters={
            "prompt_variants": list(VARIANTS),
            "multi_pass": {"enabled": bool(passes and passes.multi_pass)},
        },
        seed=0,
        arm=entry,
        inputs=inputs or {"base": "builtin:base", "sft": "builtin:sft"},
        settings={"prompts": ["".join(tokens) for tokens in TOKENS]},
    )


def capture_store(
    root: Path,
    entries: Sequence[str] = ("little",),
    *,
    passes: Passes | None = None,
    inputs: dict[str, str] | None = None,
) -> StudyStore:
    """A study directory with one capture to run per entry, none of them begun."""
    study = Study.model_validate(
        {
            "name": "captures",
            "question": "Where does fine-tuning change the residual stream?",
            "protocol": "residual",
            "factors": {"pair": {**{entry: {} for entry in entries}, "sham": {"role": "control", "null": "no change"}}},
            "seeds": [0],
            "analysis": {
                "metric": "kl_div",
                "margin": 0.01,
                "contrasts": [{"name": "change", "treatment": entries[0], "control": "sham", "primary": True}],
            },
        }
    )
    return StudyStore.create(root, study, make_plan(capture_cell(e, passes=passes, inputs=inputs) for e in entries))


def finish_capture(
    store: StudyStore,
    cell: Cell,
    *,
    passes: Passes | None = None,
    refused: Collection[str] = (),
    outcome: Outcome = "ok",
) -> FinishedCell:
    """Write the artefacts of a capture and commit it; metrics in `refused` are null."""
    write_capture(writer_of(store, cell), passes or single_pass(), str(cell.arm), refused=refused, outcome=outcome)
    finished = store.observe(cell.id)
    assert finished is not None
    return finished


def write_capture(
    writer: CellWriter, passes: Passes, entry: str, *, refused: Collection[str] = (), outcome: Outcome = "ok"
) -> None:
    """Write all artefacts but `directions`, and the record."""
    writer.json_artefact(CAPTURE, _capture(passes, entry, refused))
    for name, schema, rows in (
        (PROMPTS_NAME, PROMPTS, _prompts),
        (SCALARS_NAME, SCALARS, lambda prompt: _scalars(prompt, passes, refused)),
        (TOPK_NAME, TOPK, lambda prompt: _topk(prompt, passes)),
        (TRACKED_NAME, TRACKED, lambda prompt: _tracked(prompt, passes)),
    ):
        writer.file_artefact(name, "parquet", _filler(schema, rows))
    writer.table_artefact(LAYERS_NAME, pa.Table.from_pylist(list(_layers(passes, refused)), LAYERS))
    words = [{"id": i, "token": f"word{i}"} for i in range(10)]
    writer.table_artefact(VOCABULARY_NAME, pa.Table.from_pylist(words, VOCABULARY))
    writer.commit({"prompts": len(TOKENS)}, outcome=outcome, reason=None if outcome == "ok" else "the null is not null")


Row = dict[str, Any]


def _filler(schema: pa.Schema, rows: Callable[[int], Iterator[Row]]) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        with pq.ParquetWriter(path, schema) as file:
            for prompt in range(len(TOKENS)):
                file.write_table(pa.Table.from_pylist(list(rows(prompt)), schema))

    return fill


def _places(prompt: int, records: Sequence[tuple[str, str]], first_layer: int) -> Iterator[Row]:
    for variant in VARIANTS:
        for kind, record in records:
            for layer in range(first_layer, BLOCKS):
                for position in range(len(TOKENS[prompt])):
                    yield {"prompt": prompt, "variant": variant, "kind": kind, "record": record, "layer": layer,
                           "position": position}  # fmt: skip


def _records(passes: Passes) -> list[tuple[str, str]]:
    found = [("run", run.name) for run in passes.runs] + [("pair", c.name) for c in passes.comparisons]
    return [*found, ("factorial", "factorial")] if passes.factorial else found


def _prompts(prompt: int) -> Iterator[Row]:
    for variant in VARIANTS:
        tokens = list(TOKENS[prompt])
        count = list(range(len(tokens)))
        yield {"prompt": prompt, "variant": variant, "text": f"{variant}: {''.join(tokens)}", "ids": count,
               "tokens": tokens, "positions": count}  # fmt: skip


def _scalars(prompt: int, passes: Passes, refused: Collection[str]) -> Iterator[Row]:
    for place in _places(prompt, _records(passes), -1):
        where = (prompt, place["variant"], place["record"], place["layer"], place["position"])
        yield place | {name: scalar(*where, name) for name in _KINDS[place["kind"]] if name not in refused}


def _topk(prompt: int, passes: Passes) -> Iterator[Row]:
    directions = {"run": {"top": 1}, "pair": {"increased": 1, "decreased": -1}}
    for place in _places(prompt, [r for r in _records(passes) if r[0] != "factorial"], 0):
        found = [shift(prompt, place["record"], place["layer"], place["position"], rank) for rank in range(TOP_K)]
        for direction, sign in directions[place["kind"]].items():
            values = [sign * value for _, value in found]
            yield place | {"direction": direction, "indices": [token for token, _ in found], "values": values}


def _tracked(prompt: int, passes: Passes) -> Iterator[Row]:
    for place in _places(prompt, [("run", run.name) for run in passes.runs], 0):
        where = (prompt, place["variant"], place["record"], place["layer"], place["position"])
        yield from (place | {"token_id": token, "logit": logit(*where, token)} for token in TRACKED_TOKENS)


def _layers(passes: Passes, refused: Collection[str]) -> Iterator[Row]:
    """Means over prompts and variants of each one's mean over positions, with an interval of ± 0.5."""
    for kind, record in _records(passes):
        for layer in range(-1, BLOCKS):
            for metric in (name for name in _KINDS[kind] if name not in refused):
                means = [m for p in range(len(TOKENS)) for v in VARIANTS if (m := _mean(p, v, record, layer, metric))]
                value = sum(means) / len(means) if means else None
                ends = {} if value is None else {"low": value - 0.5, "high": value + 0.5}
                yield {"kind": kind, "record": record, "layer": layer, "metric": metric, "value": value, **ends}


def _mean(prompt: int, variant: str, record: str, layer: int, metric: str) -> float | None:
    places = range(len(TOKENS[prompt]))
    found = [value for p in places if (value := scalar(prompt, variant, record, layer, p, metric)) is not None]
    return sum(found) / len(found) if found else None


def _capture(passes: Passes, entry: str, refused: Collection[str]) -> dict[str, Any]:
    return {
        "started": STARTED,
        "entry": entry,
        "base": "org/little",
        "sft": SFT,
        "dtype": "float32",
        "lens": "norm",
        "top_k": TOP_K,
        "layers": BLOCKS,
        "d_model": 8,
        "multi_pass": passes.multi_pass,
        "runs": [asdict(run) for run in passes.runs],
        "comparisons": [asdict(comparison) for comparison in passes.comparisons],
        "tracked": {str(token): label for token, label in TRACKED_TOKENS.items()},
        "tokens_shared": 10,
        "tokens_left_out": {"base": 0, "sft": 0},
        "refused": dict.fromkeys(refused, "the widths differ: 8 and 16"),
        "notes": [],
        "null": {"kl_div": 0.0},
    }
