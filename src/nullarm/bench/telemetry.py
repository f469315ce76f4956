"""Watches GPU and host while a run takes place, and leaves no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nullarm.bench.gpu_probe import GpuProbe
from nullarm.bench.host import HostTimes, host_times, load_between
from nullarm.bench.weather import GpuLook, Weather, all_looks

INTERVAL_S = 0.125
"""Between two looks at the GPU: 8 Hz, about as often as NVML has something new to say."""


@dataclass
class Watch:
    """Holds the weather once the watch is over."""

    weather: Weather = field(default_factory=Weather)


class Telemetry:
    """What is seen of the machine during a run.

    Args:
        probe: The GPU that is measured on; None on a CPU.
        host: Reads the CPU counters.
    """

    def __init__(self, probe: GpuProbe | None = None, *, host: Callable[[], HostTimes | None] = host_times) -> None:
        self._probe, self._host = probe, host

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Watch what happens inside; the weather is there afterwards, also after an exception."""
        watch, before = Watch(), self._host()
        looks: list[GpuLook] = []
        try:
            with _looking(self._probe, looks):
                yield watch
        finally:
            foreign, idle = load_between(before, self._host())
            watch.weather = Weather(foreign, idle, all_looks(looks) if self._probe else None)


@contextmanager
def _looking(probe: GpuProbe | None, looks: list[GpuLook]) -> Iterator[None]:
    """Look at the GPU at the start, at the end and every `INTERVAL_S` in between."""
    if probe is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        looks.append(probe.look())
        while not over.wait(INTERVAL_S):
            looks.append(probe.look())

    thread = threading.Thread(target=look, name="nullarm-telemetry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        looks.append(probe.look())
