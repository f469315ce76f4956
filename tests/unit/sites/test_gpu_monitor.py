from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from nullarm.sites.gpu_monitor import GpuMonitor, GpuSample
from support.nvml import FakeNvml as Driver


class FakeNvml(Driver):
    """NVML as the monitor sees it: two GPUs, and calls that fail on demand."""

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=90 + handle, memory=1)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=3 << 29, total=80 << 30)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 250_400


def clock(*times: float) -> Callable[[], float]:
    """Time at each look; the last one stays."""
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_every_gpu_is_sampled() -> None:
    with GpuMonitor(0, nvml=FakeNvml()) as monitor:
        assert monitor.sample() == (
            GpuSample(0, 90, 3 << 29, 80 << 30, 60, 250.4),
            GpuSample(1, 91, 3 << 29, 80 << 30, 61, 250.4),
        )


def test_one_line_says_it_all() -> None:
    with GpuMonitor(2.0, nvml=FakeNvml(), clock=clock(100, 100 + 5400)) as monitor:
        assert str(monitor) == (
            "GPU 0: 90 %, 1.5 of 80.0 GiB, 60 °C, 250 W · GPU 1: 91 %, 1.5 of 80.0 GiB, 61 °C, 250 W · 1:30:00 · $3.00"
        )


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_without_a_gpu_time_and_cost_remain(failing: str, recwarn: pytest.WarningsRecorder) -> None:
    with GpuMonitor(0.5, nvml=FakeNvml(failing), clock=clock(0, 7200)) as monitor:
        assert monitor.sample() == ()
        assert str(monitor) == "2:00:00 · $1.00"
    assert len(recwarn) == 0


def test_what_the_driver_does_not_tell_is_left_out() -> None:
    nvml = FakeNvml()
    with GpuMonitor(0, nvml=nvml) as monitor:
        nvml.failing = {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"}
        assert str(monitor.sample()[1]) == "GPU 1: 1.5 of 80.0 GiB, 61 °C"
        nvml.failing |= {"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTemperature"}
        assert monitor.sample()[0] == GpuSample(0, None, None, None, None, None)
        assert str(monitor.sample()[0]) == "GPU 0: no answer"
        nvml.failing = set()
        assert monitor.sample()[0].power_w == 250.4


@pytest.mark.parametrize("failing", [(), ("nvmlShutdown",)])
def test_nvml_is_closed_afterwards_and_its_last_error_ends_nothing(failing: tuple[str, ...]) -> None:
    nvml = FakeNvml()
    monitor = GpuMonitor(0, nvml=nvml)
    assert nvml.is_open
    nvml.failing = set(failing)
    with monitor:
        pass
    assert nvml.is_open == bool(failing)
    assert monitor.sample() == ()


def test_the_fake_is_like_the_real_module() -> None:
    real = importlib.import_module("pynvml")
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) == 10
    assert [name for name in names if not hasattr(real, name)] == []
    assert real.NVML_TEMPERATURE_GPU == FakeNvml.NVML_TEMPERATURE_GPU


def test_on_this_machine_it_is_quiet() -> None:
    script = "from nullarm.sites.gpu_monitor import GpuMonitor\nwith GpuMonitor(1.0) as m: print(m.elapsed_s >= 0)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
