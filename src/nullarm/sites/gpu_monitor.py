"""What the GPUs of this machine are doing and what the time has cost; quiet where there is no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

_GIB = 1 << 30


@dataclass(frozen=True)
class GpuSample:
    """One look at one GPU; None is what the driver does not tell.

    Attributes:
        index: As NVML counts, `CUDA_VISIBLE_DEVICES` notwithstanding.
        utilisation_percent: Share of the last moments in which a kernel ran.
        memory_used_bytes: Memory in use, by whatever process.
        memory_total_bytes: All memory.
        temperature_c: Degrees Celsius.
        power_w: Watts.
    """

    index: int
    utilisation_percent: int | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: int | None
    power_w: float | None

    def __str__(self) -> str:
        parts = [
            None if self.utilisation_percent is None else f"{self.utilisation_percent} %",
            None
            if self.memory_used_bytes is None or self.memory_total_bytes is None
            else f"{self.memory_used_bytes / _GIB:.1f} of {self.memory_total_bytes / _GIB:.1f} GiB",
            None if self.temperature_c is None else f"{self.temperature_c} °C",
            None if self.power_w is None else f"{self.power_w:.0f} W",
        ]
        return f"GPU {self.index}: {', '.join(part for part in parts if part) or 'no answer'}"


class GpuMonitor:
    """The machine's GPUs, the time since the monitor was made, and its price; `print(monitor)` is one line.

    Without a GPU, a driver or NVML there are no samples, and time and cost remain. `with` closes it; so does the end of
    the process.

    Args:
        price_per_hour: Of the machine, in US dollars.
        nvml: The module `pynvml`, or one like it; imported when None.
        clock: Seconds that only go up.
    """

    def __init__(self, price_per_hour: float, *, nvml: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._price_per_hour, self._clock, self._started = price_per_hour, clock, clock()
        if nvml is None:
            import pynvml  # type: ignore[import-untyped]

            nvml = pynvml
        self._nvml = nvml
        self._handles: list[Any] = []
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles = []
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def cost(self) -> float:
        """US dollars so far."""
        return self.elapsed_s / 3600 * self._price_per_hour

    def sample(self) -> tuple[GpuSample, ...]:
        """A look at every GPU now; empty without one."""
        return tuple(self._look(index, handle) for index, handle in enumerate(self._handles))

    def __str__(self) -> str:
        elapsed = timedelta(seconds=int(self.elapsed_s))
        return " · ".join([*map(str, self.sample()), str(elapsed), f"${self.cost:.2f}"])

    def _look(self, index: int, handle: Any) -> GpuSample:
        utilisation = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerUsage, handle)
        return GpuSample(
            index=index,
            utilisation_percent=None if utilisation is None else int(utilisation.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=self._ask(self._nvml.nvmlDeviceGetTemperature, handle, self._nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """The driver's answer, or None where this GPU has none (parts of one under MIG, a GPU that was lost)."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None
