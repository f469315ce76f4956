"""Finished evaluations of protocol `kv_communication` with known numbers: everything but the models.

Arms answer right by a rule of the item's number, so accuracies, discordant items and bytes are known.

    store = communication_store(tmp_path / "study", ARMS)
    finish_all(store)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nullarm.protocols.kv_communication.parameters import Channel, Link, milestone
from nullarm.protocols.kv_communication.tables import (
    CALIBRATE,
    ITEMS,
    LATENCY,
    SECONDS,
    SENSITIVITY,
    STATISTICS,
    TRAIN_FUSER,
)
from nullarm.protocols.kv_communication.wire.codec import NAMED
from nullarm.store.cell import CellWriter
from nullarm.store.lease import Leases
from nullarm.store.record import FinishedCell, Outcome
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell, make_plan
from nullarm.study.spec import Study
from support.rehearsals import writer_of

N = 40
CHUNK = 25
RECEIVER = "org/receiver"
SHARERS = {"big": "org/sharer"}

Cluster = Callable[[int], str | None]
"""Which cluster an item belongs to, by its number."""


@dataclass(frozen=True)
class FakeArm:
    """An arm, how it answers, and what it sends."""

    channel: Channel
    wrong: Callable[[int], bool]
    """Which items, by number, it gets wrong."""
    message_bytes: int = 0
    formula: bool = True
    request_bytes: int = 0
    error: Callable[[int], str | None] = field(default=lambda i: None)
    seconds: Mapping[str, float] = field(default_factory=dict)


def _grid(codec: str, share: float = 1.0, order: Any = "front") -> Channel:
    return Channel(codec=codec) if share == 1 else Channel(codec=codec, proportion=share, order=order)


ARMS: Mapping[str, FakeArm] = {
    "receiver": FakeArm(Channel(via="receiver"), lambda i: i % 4 != 0),
    "sharer": FakeArm(Channel(via="sharer"), lambda i: i % 5 == 0),
    "text": FakeArm(Channel(via="text", text_bytes=300), lambda i: i % 2 == 0, 250, seconds={"sharer_s": 2.0}),
    "c2c": FakeArm(_grid("bf16"), lambda i: i % 10 == 0, 8000),
    "zeroed": FakeArm(Channel(sharer_cache="zeroed"), lambda i: i % 4 != 1, 8000),
    "int8": FakeArm(_grid("int8"), lambda i: i % 10 == 0, 4000),
    "int4": FakeArm(_grid("int4"), lambda i: i % 10 in (0, 1), 2000),
    "int8_p0p5_back": FakeArm(_grid("int8", 0.5, "back"), lambda i: i % 5 == 0, 1900),
    "int8_p0p5_front": FakeArm(_grid("int8", 0.5, "front"), lambda i: i % 3 != 0, 1900),
}
"""Accuracies on items 0 … 39: 0.25, 0.8, 0.5, 0.9, 0.25, 0.9, 0.8, 0.8, 0.35."""


def communication_store(
    root: Path,
    arms: Mapping[str, FakeArm] = ARMS,
    *,
    datasets: Sequence[str] = ("words",),
    seeds: Sequence[int] = (0,),
    calibrate: bool = False,
    train: bool = False,
    prefix: str = "little",
    smoke: bool = False,
    incomplete: Literal["invalid", "drop_seed"] = "invalid",
) -> StudyStore:
    """A study directory with one evaluation to run per arm, data set and seed, none of them begun."""
    first, second = list(arms)[:2]
    study = Study.model_validate(
        {
            "name": "little",
            "question": "How few bytes will do?",
            "protocol": "kv_communication",
            "parameters": {"receiver": RECEIVER, "sharers": SHARERS},
            "factors": {"channel": {arm: {} for arm in arms}},
            "seeds": list(seeds),
            "smoke": smoke,
            "analysis": {
                "incomplete": incomplete,
                "metric": "accuracy",
                "margin": 0.2,
                "resamples": 400,
                "contrasts": [
                    {"name": "help", "treatment": second, "control": first, "test": "paired_items", "primary": True}
                ],
            },
        }
    )
    cells = [_evaluate(n, arm, d, s, prefix) for s in seeds for n, arm in arms.items() for d in datasets]
    stages = [TRAIN_FUSER] * train + [CALIBRATE] * calibrate
    others = [_of_fuser(stage, seed) for stage in stages for seed in seeds]
    return StudyStore.create(root, study, make_plan([*others, *cells]))


def modulo(clusters: int) -> Cluster:
    """Item k belongs to cluster k modulo `clusters`."""
    return lambda i: str(i % clusters)


def alone(i: int) -> str | None:
    """No item belongs to a cluster."""
    return None


def finish_all(
    store: StudyStore, arms: Mapping[str, FakeArm] = ARMS, *, cluster: Cluster = alone, but: Sequence[str] = ()
) -> None:
    """Finish every cell but those of the arms in `but`."""
    for cell in store.plan:
        if cell.arm not in but:
            finish(store, cell, arms.get(str(cell.arm)), cluster=cluster)


def begin(store: StudyStore, cell: Cell, arm: FakeArm, *, until: int, chunk: int = CHUNK) -> None:
    """Commit the chunks of the first `until` items, and then stop as a preempted worker does."""
    leases = Leases()
    lease = store.claim(cell, leases)
    assert lease is not None, "somebody holds the cell"
    _write_chunks(CellWriter(store.paths.cell(cell.id), lease.attempt), item_rows(cell, arm, N, alone)[:until], chunk)
    leases.release_all()


def finish(
    store: StudyStore,
    cell: Cell,
    arm: FakeArm | None,
    *,
    n: int = N,
    cluster: Cluster = alone,
    outcome: Outcome = "ok",
    reason: str | None = None,
    open_streams: int = 4,
) -> FinishedCell:
    """Write the artefacts of one cell, in chunks where it is an evaluation, and commit it."""
    writer = writer_of(store, cell)
    if cell.stage == CALIBRATE:
        writer.table_artefact(STATISTICS, pa.Table.from_pylist(statistics()))
        writer.table_artefact(SENSITIVITY, pa.Table.from_pylist(sensitivities()))
    elif arm is not None:
        rows = item_rows(cell, arm, n, cluster)
        _write_chunks(writer, rows, CHUNK)
        writer.table_artefact(ITEMS, _table(rows).drop_columns(list(SECONDS)))
        writer.table_artefact(LATENCY, _table(rows).select(["item", *SECONDS]))
    writer.paths.log.write_text(f"Eval {cell.slice}: [0, {min(CHUNK, n)})\n", encoding="utf-8")
    metrics = {"open_streams": open_streams} if cell.stage == TRAIN_FUSER else {}
    writer.commit(metrics, outcome=outcome, reason=reason, seconds=1.0, provenance={"python": "3.11"})
    finished = store.observe(cell.id)
    assert finished is not None
    return finished


def _write_chunks(writer: CellWriter, rows: Sequence[dict[str, Any]], chunk: int) -> None:
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        key = f"items-{start:08d}-{start + len(part):08d}"
        writer.table_chunk(key, lambda part=part: _table(part))  # type: ignore[misc]


def item_rows(cell: Cell, arm: FakeArm, n: int, cluster: Cluster) -> list[dict[str, Any]]:
    """The per-item table as rows."""
    return [
        {
            "item": f"{cell.slice}:{i:03d}",
            "cluster": None if (label := cluster(i)) is None else f"{cell.slice}:{label}",
            "dataset": cell.slice,
            "accuracy": 0.0 if arm.wrong(i) or arm.error(i) else 1.0,
            "prediction": "B" if arm.wrong(i) else "A",
            "target": "A",
            "error": arm.error(i),
            "input_tokens": 20,
            "sharer_tokens": 22,
            "sent_tokens": 22,
            "output_tokens": 1,
            "message_bytes": arm.message_bytes,
            "formula_bytes": arm.message_bytes if arm.formula else None,
            "request_bytes": arm.request_bytes,
            **{part: arm.seconds.get(part, 0.125) for part in SECONDS},
        }
        for i in range(n)
    ]


def statistics() -> list[dict[str, Any]]:
    """Quantisation errors of two layers."""
    return [
        {"codec": codec, "layer": layer, "half": half, "tokens": 100, "bytes_per_token": 8.0,
         "relative_error": error * (layer + 1), "largest_error": error, "cosine": 1 - error, "amax": 2.0}
        for codec, error in (("int8", 0.01), ("int4", 0.125))
        for layer in range(2)
        for half in ("key", "value")
    ]  # fmt: skip


def sensitivities() -> list[dict[str, Any]]:
    """Damage of two widths in two layers."""
    return [
        {"codec": "grouped", "layer": layer, "half": half, "bits": bits, "kl": 0.5 / bits, "bytes_per_token": 1.0}
        for bits in (2, 4)
        for layer in range(2)
        for half in ("key", "value")
    ]  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    types = {
        **{name: pa.float64() for name in ("accuracy", *SECONDS)},
        **{name: pa.string() for name in ("item", "cluster", "dataset", "prediction", "target", "error")},
    }
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.int64())) for name in rows[0]})


def _evaluate(name: str, arm: FakeArm, dataset: str, seed: int, prefix: str) -> Cell:
    channel = arm.channel.model_dump(mode="json")
    return Cell(
        protocol="kv_communication", version=1, stage="evaluate", parameters={"channel": channel}, seed=seed, arm=name,
        slice=dataset, inputs={"receiver": "sha:1", "sharer:big": "sha:2"},
        settings={
            "channel": channel,
            "codec": NAMED[arm.channel.codec].model_dump(mode="json"),
            "milestone": milestone(arm.channel),
            "receiver": RECEIVER,
            "sharers": SHARERS,
            "dataset": dataset,
            "link": Link().model_dump(mode="json"),
            "fusers": {name: {} for name in arm.channel.fusers or ("default",)} if arm.channel.via == "fuser" else {},
            "run_tag_prefix": prefix,
        },
    )  # fmt: skip


def _of_fuser(stage: str, seed: int) -> Cell:
    return Cell(
        protocol="kv_communication", version=1, stage=stage, seed=seed, slice="default",
        parameters={"fuser": "default", "codec_name": "all"},
        settings={"run_tag_prefix": "little"},
    )  # fmt: skip
