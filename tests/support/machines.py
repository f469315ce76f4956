"""A machine that does not exist, with the noise of one that does and whatever trouble is planted in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nullarm.bench.session import Instruments
from nullarm.bench.subjects import Timing
from nullarm.bench.telemetry import Watch
from nullarm.bench.weather import POWER_CAP, GpuLook, Reading, Weather

RUNS = 68
"""Of a session with the settings' defaults; the drift is spread over them."""


@dataclass(frozen=True)
class Trouble:
    """What others do to the machine while a run takes place."""

    slow: float = 0.0
    foreign_cpus: float = 0.0
    foreign_gpu_processes: int = 0
    throttle: frozenset[str] = frozenset()


QUIET = Trouble()


class SimulatedMachine:
    """Sentinels, telemetry and subjects of a machine, in its own time.

    Args:
        rng: All of its noise.
        gpu: Whether it has one, and it is measured on.
        trouble: What is wrong at the run of this number, from 0; −1 before the first.
        noise: Standard deviation of the sentinels' logarithm.
        spikes: Share of their readings that are 20 % longer.
        hungry: Subject that reaches the power cap of the GPU: clock and GEMM are 15 % slower until another one runs.
        speeds: Tokens per second by subject.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        gpu: bool = False,
        trouble: Callable[[int], Trouble] = lambda run: QUIET,
        noise: float = 0.02,
        spikes: float = 1 / 50,
        hungry: str | None = None,
        speeds: dict[str, float] | None = None,
    ) -> None:
        self.rng, self.gpu, self.trouble, self.noise, self.spikes = rng, gpu, trouble, noise, spikes
        self.hungry = hungry
        self.speeds = speeds or {"treatment": 40.0, "control": 40.0, "slowed": 40 / 1.05}
        self.runs, self.now, self.asked = -1, 0.0, list[str]()

    @property
    def instruments(self) -> Instruments:
        """For a session."""
        return Instruments(self.sentinel, self.watch)

    def sentinel(self) -> Reading:
        """Log-normal noise, now and then a spike, a drift of 2 % over the session, the trouble and the power cap."""
        level = (1 + 0.02 * max(0, self.runs) / RUNS) * (1 + self.trouble(self.runs).slow)
        noise = np.exp(self.noise * self.rng.normal(size=2))
        gemm, copy = level * noise * (1 + 0.2 * (self.rng.random(2) < self.spikes))
        return Reading(0.002 * gemm * (1.15 if self._capped else 1), 0.001 * copy)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """One run."""
        self.runs += 1
        watch, trouble, capped = Watch(), self.trouble(self.runs), self._capped
        yield watch
        foreign = trouble.foreign_cpus + self.rng.uniform(0, 0.1)
        throttle = trouble.throttle | ({POWER_CAP} if capped or self._capped else set())
        clock = self.rng.normal(1800, 10) * (0.85 if self._capped else 1)
        gpu = GpuLook(trouble.foreign_gpu_processes, clock, 2600, throttle, 60, 250, 1 << 30)
        watch.weather = Weather(foreign, max(0, 2 - foreign), gpu if self.gpu else None)

    @property
    def _capped(self) -> bool:
        return self.runs >= 0 and self.asked[-1:] == [self.hungry]

    def run(self, subject: str) -> Timing:
        """64 tokens."""
        self.asked.append(subject)
        seconds = np.exp(0.003 * self.rng.normal(size=64)) / self.speeds[subject]
        self.now += 0.05 + float(seconds.sum())
        return Timing(0.05, tuple(seconds.tolist()), 64)

    def clock(self) -> float:
        """Seconds since it was made."""
        return self.now
