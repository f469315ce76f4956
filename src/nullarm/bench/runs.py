"""The run table: one row a run, kept whatever is thought of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Phase = Literal["contrast", "again", "slowed"]
Arm = Literal["treatment", "control"]


class State(StrEnum):
    """How far a run, or a session, may be believed; from good to bad."""

    CLEAN = "CLEAN"
    SUSPECT = "SUSPECT"
    CONTAMINATED = "CONTAMINATED"


def worst(states: Iterable[State]) -> State:
    """The worst of them; CLEAN of none."""
    return max(states, key=list(State).index, default=State.CLEAN)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        run: Number within the session, from 0.
        phase: `contrast`; `again`, where both arms are the control; `slowed`, where the treatment is the slowed
            control.
        block: Number of the block within its phase.
        attempt: Of the block, from 1.
        arm: Which side of the comparison.
        prefill_s: Seconds to read the prompt.
        decode_s: Seconds of decoding.
        tokens_per_s: Tokens per second of decoding.
        tokens: Tokens written.
        state: From the weather around it and how its process warmed up, see `contamination` and `warmup`.
        reasons: Why it is not CLEAN, joined by `"; "`.
        gemm_before: Sentinel before the run, in seconds; None when the sentinel failed, as for the next three.
        gemm_after: The same after it.
        copy_before: The other sentinel before the run.
        copy_after: The same after it.
        foreign_cpus: Cores used by others; None off Linux.
        foreign_gpu_processes: Compute processes on the GPU that are not ours; this and what follows None without one.
        sm_clock_mhz: Median clock of the multiprocessors.
        memory_clock_mhz: Median clock of the memory.
        throttle: What held the clock back, joined by `", "`.
        temperature_c: Highest, in degrees Celsius.
        power_w: Mean, in watts.
        memory_used_bytes: Most memory in use on the GPU, by whatever process.
        started_s: Seconds from the session's start; a session that is resumed goes on from its last run.
    """

    run: int
    phase: Phase
    block: int
    attempt: int
    arm: Arm
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    tokens: int
    state: State
    reasons: str
    gemm_before: float | None
    gemm_after: float | None
    copy_before: float | None
    copy_after: float | None
    foreign_cpus: float | None
    foreign_gpu_processes: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle: str | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    memory_used_bytes: int | None = None
    started_s: float


def run_table(runs: Iterable[Run]) -> pa.Table:
    """The runs as a table whose types do not hang on what happens to be null."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    kinds = {"Phase": "str", "Arm": "str", "State": "str"}
    annotations = {name: str(field.type).removesuffix(" | None") for name, field in Run.__dataclass_fields__.items()}
    schema = pa.schema([(name, types[kinds.get(kind, kind)]) for name, kind in annotations.items()])
    return pa.Table.from_pylist([asdict(run) | {"state": run.state.value} for run in runs], schema=schema)


def runs_of(table: pa.Table) -> list[Run]:
    """The runs of a run table."""
    return [Run(**row | {"state": State(row["state"])}) for row in table.to_pylist()]
