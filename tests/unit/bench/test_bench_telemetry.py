from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nullarm.bench.gpu_probe import THROTTLES, GpuProbe, foreign
from nullarm.bench.host import HostTimes, host_times, load_between
from nullarm.bench.settings import BenchSettings
from nullarm.bench.telemetry import Telemetry
from nullarm.bench.weather import GpuLook, Weather
from support.nvml import FakeNvml as Driver
from support.processes import eventually


class FakeNvml(Driver):
    """NVML as the probe sees it: one GPU, on it this process and others, and calls that fail on demand."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2

    def __init__(self) -> None:
        super().__init__()
        self.mine, self.others = [os.getpid()], list[int]()
        self.reasons = 0x1 | 0x2
        self.looks = 0

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self.looks += 1
        return [SimpleNamespace(pid=pid) for pid in (*self.mine, *self.others)]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return {1: 1800, 2: 2600}[clock]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 60

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 250_400

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=3 << 29, total=80 << 30)


QUIET = GpuLook(0, 1800, 2600, frozenset(), 60, 250.4, 3 << 29)
QUESTIONS = [name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet")]


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


@pytest.fixture
def probe(nvml: FakeNvml) -> Iterator[GpuProbe]:
    with GpuProbe("GPU-1", nvml=nvml) as opened:
        yield opened
    assert not nvml.is_open


def telemetry_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nullarm-telemetry"]


def test_a_look_at_a_quiet_gpu(probe: GpuProbe) -> None:
    assert probe.look() == QUIET


def test_others_on_the_gpu_are_counted_and_our_children_are_not(nvml: FakeNvml, probe: GpuProbe) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        nvml.others = [child.pid, 1]
        assert probe.look().foreign_processes == 1
        assert child.stdin is not None
        child.stdin.close()


BEYOND = 1 << 22
"""Above the largest process id: so the host may name what runs in a container."""


@pytest.mark.parametrize(
    ("ours", "seen", "others"), [(1, 0, 0), (1, 1, 0), (1, 2, 1), (1, 3, 2), (2, 1, 0), (2, 2, 0), (2, 3, 1)]
)
def test_in_a_container_as_many_as_are_ours_must_be_us(ours: int, seen: int, others: int) -> None:
    """However many children this process has: they need not be on the GPU, as those that compile are not."""
    nvml = FakeNvml()
    nvml.mine, nvml.others = [], [BEYOND + i for i in range(seen)]
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    try:
        with GpuProbe("GPU-1", ours=ours, nvml=nvml) as probe:
            assert probe.look().foreign_processes == others
    finally:
        for child in children:
            child.communicate()


def test_alone_on_the_gpu_nobody_is_foreign() -> None:
    assert foreign({os.getpid()}, 1) == foreign({os.getpid()}, 2) == 0


@pytest.mark.parametrize(("procedure", "ours"), [("abba", 1), ("blocked", 1), ("fresh_process", 2)])
def test_a_run_in_a_process_of_its_own_is_one_more_of_ours(procedure: str, ours: int) -> None:
    assert BenchSettings.model_validate({"procedure": procedure}).processes == ours


@pytest.mark.parametrize("bit", THROTTLES)
def test_throttling_is_told_by_name(nvml: FakeNvml, probe: GpuProbe, bit: int) -> None:
    nvml.reasons |= bit
    assert probe.look().throttle == frozenset({THROTTLES[bit]})


def test_the_watch_samples_while_the_run_takes_place(nvml: FakeNvml, probe: GpuProbe) -> None:
    with Telemetry(probe).watch() as watch:
        assert len(telemetry_threads()) == 1
        eventually(lambda: nvml.looks >= 4, "a few looks")
        nvml.others = [1]
        eventually(lambda: nvml.looks >= 7, "a few more")
        nvml.others = []
    assert telemetry_threads() == []
    assert watch.weather.gpu is not None
    assert watch.weather.gpu.foreign_processes == 1


def test_after_an_exception_no_thread_is_left_and_the_weather_is_there(probe: GpuProbe) -> None:
    with pytest.raises(ValueError, match="of the run"), Telemetry(probe).watch() as watch:
        raise ValueError("of the run")
    assert telemetry_threads() == []
    assert watch.weather.gpu == QUIET


def test_without_a_gpu_there_is_no_thread() -> None:
    with Telemetry(host=lambda: None).watch() as watch:
        assert telemetry_threads() == []
    assert watch.weather == Weather()


@pytest.mark.parametrize("question", [name for name in QUESTIONS if not name.endswith("UUID")])
def test_nvml_that_fails_half_way_ends_nothing(nvml: FakeNvml, probe: GpuProbe, question: str) -> None:
    with Telemetry(probe).watch() as watch:
        eventually(lambda: nvml.looks >= 2, "one look to its end")
        nvml.failing = {question}
        time.sleep(0.2)
    assert watch.weather.gpu == QUIET  # from the looks before it failed
    looked = probe.look()
    assert looked != QUIET
    assert None in vars(looked).values()
    assert looked.silent == (question.endswith(("Processes", "Reasons")))


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_gpu_that_nvml_does_not_know_is_silent(nvml: FakeNvml, failing: str) -> None:
    nvml.failing = {failing, "nvmlShutdown"}
    with GpuProbe("GPU-1", nvml=nvml) as probe, Telemetry(probe).watch() as watch:
        pass
    assert watch.weather.gpu == GpuLook()
    assert GpuLook().silent


def test_the_fake_is_like_the_real_module() -> None:
    real = importlib.import_module("pynvml")
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert [name for name in names if not hasattr(real, name)] == []
    assert (real.NVML_CLOCK_SM, real.NVML_CLOCK_MEM) == (FakeNvml.NVML_CLOCK_SM, FakeNvml.NVML_CLOCK_MEM)
    assert real.nvmlClocksThrottleReasonSwPowerCap == 0x4
    assert real.nvmlClocksThrottleReasonHwSlowdown == 0x8
    assert real.nvmlClocksThrottleReasonSwThermalSlowdown == 0x20
    assert real.nvmlClocksThrottleReasonHwThermalSlowdown == 0x40
    assert real.nvmlClocksThrottleReasonHwPowerBrakeSlowdown == 0x80


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts")
def test_busy_time_is_that_of_the_cores_we_may_use(tmp_path: Path) -> None:
    mine = min(os.sched_getaffinity(0))
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    rows = ["cpu  9 9 9 9 9 9 9 9 9 9", f"cpu{mine} 100 1 20 5000 700 3 4 50 60 70", "cpu4096 9 9 9 9 9 9 9 9 9 9"]
    stat.write_text("\n".join([*rows, "intr 5", ""]))
    found = host_times(stat)
    assert found is not None
    assert found.busy_s == pytest.approx(
        (100 + 1 + 20 + 3 + 4 + 50) * tick_s
    )  # stolen time is in it, guests' not twice
    assert found.idle_s == pytest.approx(5700 * tick_s)


def test_load_is_busy_time_less_our_own() -> None:
    before = HostTimes(wall_s=100, busy_s=50, idle_s=500, own_s=7)
    assert load_between(before, HostTimes(110, 75, 505, 17)) == pytest.approx((1.5, 0.5), abs=0.01)
    assert load_between(before, HostTimes(110, 60, 510, 17)) == (0, 1)  # the counters' ticks are nobody's load
    assert load_between(before, None) == load_between(None, before) == load_between(before, before) == (None, None)


def test_off_linux_nobody_tells(tmp_path: Path) -> None:
    assert host_times(tmp_path / "absent") is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts")
def test_our_own_work_and_that_of_children_that_ended_is_ours() -> None:
    before = host_times()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    sum(range(3_000_000))
    after = host_times()
    assert before is not None
    assert after is not None
    assert after.own_s - before.own_s > 0.03
    assert after.busy_s >= before.busy_s
