"""A session of measurements: warm-up, blocks in random order, sentinels around each run, contaminated blocks again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from nullarm.bench.blocks import Block, due, schedule
from nullarm.bench.contamination import judge_run, together
from nullarm.bench.runs import Arm, Run, State
from nullarm.bench.settings import BenchSettings
from nullarm.bench.subjects import Timing
from nullarm.bench.telemetry import Watch
from nullarm.bench.warmup import WarmUp, assess, warm_up
from nullarm.bench.weather import GpuLook, Reading
from nullarm.errors import Preempted

CALIBRATION_READINGS = 20
"""Readings of the sentinels after warming up, before the first run: what is usual."""

_NO_GPU = GpuLook()


@dataclass(frozen=True)
class Instruments:
    """What looks at the machine: `instruments(device)` opens the real ones.

    Attributes:
        sentinel: Does its fixed work once.
        watch: Watches what happens inside a `with`.
    """

    sentinel: Callable[[], Reading]
    watch: Callable[[], AbstractContextManager[Watch]]


class Session:
    """Measures a treatment against a control.

    Args:
        settings: What is done.
        run: Runs `treatment`, `control` or `slowed` (the control slowed by `settings.slowdown`) once, for
            `settings.tokens` tokens.
        instruments: What looks at the machine.
        rng: Draws the order. A session that is resumed needs a generator of the same seed.
        clock: Seconds that only go up.

    Attributes:
        schedule: All blocks in their order, re-runs not among them.
        warm_ups: How the arms warmed up in this process; empty before, and where nothing is warmed up.
    """

    def __init__(
        self,
        settings: BenchSettings,
        run: Callable[[str], Timing],
        instruments: Instruments,
        *,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule = schedule(settings, rng)
        self.warm_ups: dict[str, WarmUp] = {}
        self._settings, self._subject, self._instruments, self._clock = settings, run, instruments, clock
        self._settled = False
        self._usual: dict[str, list[float]] = {"gemm": [], "copy": [], "sm_clock": []}

    def blocks(
        self,
        done: Sequence[Run] = (),
        *,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    ) -> Iterator[list[Run]]:
        """Run what is still to be run, and hand over each block as soon as it is complete.

        Args:
            done: Runs of whole blocks that an earlier process handed over.
            should_stop: Looked at before warming up and before each block.
            progress: Told how many blocks are done, of how many as far as is known, and what comes.

        Raises:
            Preempted: `should_stop` said so.
        """
        runs = list(done)
        began = self._clock() - max((run.started_s + run.decode_s for run in runs), default=0.0)
        while todo := due(self.schedule, runs, self._settings.retries):
            block, attempt = todo[0]
            finished = len({(run.phase, run.block, run.attempt) for run in runs})
            if should_stop():
                raise Preempted(f"asked to stop before block {finished + 1} of {finished + len(todo)}")
            progress(finished, finished + len(todo), f"{block.phase} {block.index}, attempt {attempt}")
            self._settle()
            made = [self._run(len(runs) + i, block, attempt, arm, began) for i, arm in enumerate(block.arms)]
            runs += made
            yield made

    def _settle(self) -> None:
        """Warm up and read the sentinels, once in a process."""
        if self._settled:
            return
        most = {"abba": self._settings.warmup_max_runs, "blocked": 1, "fresh_process": 0}[self._settings.procedure]
        if most:
            self.warm_ups = warm_up(lambda arm: 1 / self._subject(arm).tokens_per_s, ("control", "treatment"), most)
        for _ in range(CALIBRATION_READINGS):
            self._remember(self._read())
        self._settled = True

    def _run(self, number: int, block: Block, attempt: int, arm: Arm, began: float) -> Run:
        started_s = self._clock() - began
        with self._instruments.watch() as watch:
            before = self._read()
            timing = self._subject(block.subject(arm))
            after = self._read()
        weather, gpu = watch.weather, watch.weather.gpu or _NO_GPU
        around = judge_run(before, after, weather, self._usual, self._settings.thresholds)
        judged = together([around, assess(self.warm_ups.values())])
        if judged.state is not State.CONTAMINATED:
            self._remember(before, after, gpu=gpu)
        return Run(
            run=number, phase=block.phase, block=block.index, attempt=attempt, arm=arm,
            prefill_s=timing.prefill_s, decode_s=timing.decode_s, tokens_per_s=timing.tokens_per_s,
            tokens=timing.tokens, state=judged.state, reasons="; ".join(judged.reasons),
            gemm_before=before.gemm_s, gemm_after=after.gemm_s,
            copy_before=before.copy_s, copy_after=after.copy_s,
            foreign_cpus=weather.foreign_cpus, foreign_gpu_processes=gpu.foreign_processes,
            sm_clock_mhz=gpu.sm_clock_mhz, memory_clock_mhz=gpu.memory_clock_mhz,
            throttle=None if gpu.throttle is None else ", ".join(sorted(gpu.throttle)),
            temperature_c=gpu.temperature_c, power_w=gpu.power_w, memory_used_bytes=gpu.memory_used_bytes,
            started_s=started_s,
        )  # fmt: skip

    def _read(self) -> Reading:
        """A reading, empty when it failed: a sentinel that fails makes runs suspect and ends nothing."""
        try:
            return self._instruments.sentinel()
        except RuntimeError:  # torch's own: no memory left, a kernel that failed
            return Reading()

    def _remember(self, *readings: Reading, gpu: GpuLook = _NO_GPU) -> None:
        seen = [("gemm", reading.gemm_s) for reading in readings] + [("copy", reading.copy_s) for reading in readings]
        for name, value in (*seen, ("sm_clock", gpu.sm_clock_mhz)):
            if value is not None and (name == "copy" or not gpu.power_capped):
                self._usual[name].append(value)
