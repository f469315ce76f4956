"""Looks at the GPU that is measured on, through NVML; what it does not answer is None and ends nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psutil

from nullarm.bench.weather import POWER_CAP, GpuLook

THROTTLES = {
    0x004: POWER_CAP,
    0x008: "hardware slowdown",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
}
"""Bits of NVML's clock event reasons that hold the clock back; the others are idleness and settings."""


class GpuProbe:
    """One GPU, known by its UUID because NVML counts GPUs otherwise than CUDA does. `with` closes it.

    Args:
        uuid: As NVML writes it, `GPU-…`.
        ours: Processes of this session that are on it at a time, see `foreign`.
        nvml: The module `pynvml`, or one like it; imported when None.
    """

    def __init__(self, uuid: str, *, ours: int = 1, nvml: Any = None) -> None:
        if nvml is None:
            import pynvml  # type: ignore[import-untyped]

            nvml = pynvml
        self._nvml, self._handle, self._ours = nvml, None, ours
        with suppress(nvml.NVMLError):
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle = None
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def look(self) -> GpuLook:
        """The GPU now."""
        nvml, ask = self._nvml, self._ask
        processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses)
        reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)  # the name that every driver knows
        milliwatts, memory = ask(nvml.nvmlDeviceGetPowerUsage), ask(nvml.nvmlDeviceGetMemoryInfo)
        return GpuLook(
            foreign_processes=None if processes is None else foreign({int(p.pid) for p in processes}, self._ours),
            sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            throttle=None if reasons is None else frozenset(n for bit, n in THROTTLES.items() if reasons & bit),
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            memory_used_bytes=None if memory is None else int(memory.used),
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        if self._handle is None:
            return None
        try:
            return question(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def foreign(pids: set[int], ours: int) -> int:
    """How many of the processes on the GPU are neither this one nor its children.

    This process is on the GPU while it measures there. So when it is not among them, NVML names processes as the host
    does and not as the container does, and which of them are ours cannot be told, only how many. Children are no
    measure of that: most, such as the pool in which `torch.compile` compiles, are not on the GPU.

    Args:
        pids: As NVML names them.
        ours: How many of them belong to this session where the names do not tell: this process, and the run's where
            runs have processes of their own.
    """
    if os.getpid() not in pids:
        return max(0, len(pids) - ours)
    if len(pids) == 1:
        return 0
    return len(pids - {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))})
