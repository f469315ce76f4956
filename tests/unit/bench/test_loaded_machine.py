"""While other processes keep every core of the real machine busy, the session says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from nullarm.bench.instruments import instruments
from nullarm.bench.judging import judge_session
from nullarm.bench.runs import State
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.bench.stopwatch import HostStopwatch
from nullarm.bench.subjects import Subject, Timing
from nullarm.stats.verdict import Verdict
from support.processes import eventually

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts")

SETTINGS = BenchSettings(blocks=5, again_blocks=2, slowed_blocks=2, retries=0, warmup_max_runs=1, tokens=8)


class Products(Subject):
    """A small real subject: a matrix product for each token."""

    name = "products"

    def __init__(self) -> None:
        self._matrix = torch.linspace(-1, 1, 192 * 192).view(192, 192)

    def run(self, tokens: int) -> Timing:
        watch = HostStopwatch()
        watch.mark()
        for _ in range(tokens + 1):
            for _ in range(4):
                self._matrix @ self._matrix
            watch.mark()
        prefill_s, *latencies_s = watch.intervals_s()
        return Timing(prefill_s, tuple(latencies_s), tokens)


def is_busy(process: psutil.Process) -> bool:
    return process.cpu_times().user > 0.1


@pytest.fixture
def load() -> Iterator[None]:
    """A process for each core that we may use, busy until the test is over."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        for other in others:
            eventually(partial(is_busy, psutil.Process(other.pid)), "a busy process")
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.usefixtures("load")
def test_a_loaded_machine_is_contaminated_and_the_reason_is_the_load() -> None:
    subject = Products()
    with instruments(torch.device("cpu")) as opened:
        session = Session(SETTINGS, lambda arm: subject.run(SETTINGS.tokens), opened, rng=np.random.default_rng(0))
        runs = [run for block in session.blocks() for run in block]
    found = judge_session(runs, margin=0.005, settings=SETTINGS)
    assert len(runs) == 36
    assert (found.verdict, found.session) == (Verdict.INVALID, State.CONTAMINATED)
    assert found.reasons[0] == "The session is contaminated: its numbers show neither a difference nor a null."
    assert "blocks stayed contaminated (foreign CPU load in" in found.reasons[1]
