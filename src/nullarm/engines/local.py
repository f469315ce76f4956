"""Cells in worker processes on this machine: one slot per GPU share or CPU share, workers kept warm between cells."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import psutil

from nullarm.engines.base import Ended, Engine, Event, Job, Progress, read_log
from nullarm.errors import PreflightError
from nullarm.sites.provenance import gpus

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
EXIT_GRACE_S = 5.0


@dataclass
class _Slot:
    """A share of the machine, and the warm worker that runs in it."""

    cpus: int
    gpus: tuple[str, ...]
    worker: _Worker | None = None


@dataclass
class _Worker:
    """One `nullarm.worker --serve` process and the job it is at."""

    process: subprocess.Popen[str]
    root: Path
    job: Job | None = None
    listener: threading.Thread | None = None


@final
class LocalEngine(Engine):
    """A pool of warm worker processes.

    Args:
        cpus_per_cell: Threads of one cell.
        gpus_per_cell: GPUs of one cell; 0 for CPU cells.
        at_once: Number of cells at a time, at most one per share of the GPUs; as many as the machine has shares for
            when left out.

    Raises:
        PreflightError: The machine has too few GPUs for one cell.
    """

    def __init__(self, cpus_per_cell: int = 1, gpus_per_cell: int = 0, at_once: int | None = None) -> None:
        cpu_shares: list[tuple[str, ...]] = [()] * (at_once or max(1, _cpus() // cpus_per_cell))
        shares = _gpu_shares(gpus_per_cell) if gpus_per_cell else cpu_shares
        self._slots = [_Slot(cpus_per_cell, share) for share in shares[: at_once or len(shares)]]
        self._workers: list[_Worker] = []
        """All that were started and may still live, also those that have left their slot."""
        self._events: queue.Queue[Event] = queue.Queue()
        self._submitted: set[tuple[Path, str, int]] = set()
        self._lock = threading.Lock()
        """Held while a job is given to a worker and while a worker's end is noted, so that no job falls between."""

    def room(self) -> int:
        """Free slots."""
        return sum(slot.worker is None or slot.worker.job is None for slot in self._slots)

    def submit(self, job: Job) -> None:
        """Give the job to a warm worker, or start one.

        Raises:
            PreflightError: All slots are taken.
        """
        if job.key in self._submitted:
            return
        with self._lock:
            slot = self._free_slot(job)
            self._submitted.add(job.key)
            worker = slot.worker or self._start(slot, job.root)
            slot.worker = worker
            worker.job = job
        _send(worker, {"cell": job.cell_id, "attempt": job.attempt})

    def poll(self, timeout_s: float) -> list[Event]:
        """Events of all workers."""
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """Signal the cell's worker: SIGTERM for the next safe point, SIGKILL for at once."""
        with self._lock:
            for slot in self._slots:
                if slot.worker and slot.worker.job and slot.worker.job.cell_id == cell_id:
                    slot.worker.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def logs(self, root: Path, cell_id: str) -> str:
        """The cell's log."""
        return read_log(root, cell_id)

    def fetch(self, root: Path, cell_id: str) -> None:
        """Nothing to do: the cell wrote to the study directory."""

    def close(self) -> None:
        """Let idle workers go, end the others."""
        for worker in self._workers:
            if worker.job is None:
                _send(worker, {})
            else:
                worker.process.terminate()
        deadline = time.monotonic() + EXIT_GRACE_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
            if worker.listener:
                worker.listener.join(EXIT_GRACE_S)
        self._workers.clear()

    def _free_slot(self, job: Job) -> _Slot:
        free = [slot for slot in self._slots if slot.worker is None or slot.worker.job is None]
        if not free:
            raise PreflightError(f"no slot is free for cell {job.cell_id}", value=f"{len(self._slots)} slots")
        for slot in free:
            if slot.worker and slot.worker.root != job.root:
                _send(slot.worker, {})
                slot.worker = None
        return max(free, key=lambda slot: slot.worker is not None)

    def _start(self, slot: _Slot, root: Path) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "nullarm.worker", "--serve", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(slot),
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then asks the workers to stop
        )
        worker = _Worker(process, root)
        worker.listener = threading.Thread(target=self._listen, args=(slot, worker), daemon=True)
        worker.listener.start()
        self._workers = [known for known in self._workers if known.process.poll() is None]
        self._workers.append(worker)
        return worker

    def _listen(self, slot: _Slot, worker: _Worker) -> None:
        """Turn a worker's lines into events; its end, if a job was under way, is an event too."""
        process = worker.process
        for line in process.stdout or ():
            self._hear(slot, worker, line)
        code = process.wait()
        with self._lock:
            if slot.worker is worker:
                slot.worker = None
            job, worker.job = worker.job, None
        if job is not None:
            self._events.put(Ended(job, code if code >= 0 else None))
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # bytes that the worker never took
                if pipe:
                    pipe.close()

    def _hear(self, slot: _Slot, worker: _Worker, line: str) -> None:
        job = worker.job
        if job is None or not line.endswith("\n"):  # a worker that was killed may leave half a line
            return
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "progress":
            self._events.put(Progress(job, event["done"], event["total"], event["note"]))
            return
        code = int(event["exit_code"])
        with self._lock:
            if code != 0 and slot.worker is worker:
                slot.worker = None  # a worker leaves after a cell that did not end well: the next one starts clean
            worker.job = None
        self._events.put(Ended(job, code))


def _send(worker: _Worker, message: Mapping[str, object]) -> None:
    """Write one line to the worker; a worker that is gone is noticed by its listener."""
    with contextlib.suppress(BrokenPipeError, ValueError):  # its pipe is broken, or closed already
        if worker.process.stdin:
            worker.process.stdin.write(json.dumps(message) + "\n")
            worker.process.stdin.flush()


def _environment(slot: _Slot) -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, str(slot.cpus))
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)}
    return {**os.environ, **threads, **devices, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def _cpus() -> int:
    try:
        return len(psutil.Process().cpu_affinity() or ())
    except AttributeError:  # no affinity on this platform
        return psutil.cpu_count() or 1


def _gpu_shares(per_cell: int) -> list[tuple[str, ...]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [n for n in visible.split(",") if n] if visible is not None else [str(i) for i in range(len(gpus()))]
    shares = [tuple(names[i : i + per_cell]) for i in range(0, len(names) - per_cell + 1, per_cell)]
    if not shares:
        raise PreflightError(
            f"a cell needs {per_cell} GPU(s)",
            value=f"{len(names)} visible",
            next_command="`--set resources.gpus=0` for CPU",
        )
    return shares
