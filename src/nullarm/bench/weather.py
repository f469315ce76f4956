"""What happened around a run, as numbers; None is what nobody told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeVar

T = TypeVar("T")

POWER_CAP = "power cap"
"""The one reason to hold the clock back that is no disturbance: the timed arm itself may draw that much."""


@dataclass(frozen=True)
class Reading:
    """One reading of the sentinels, in seconds; None when they failed."""

    gemm_s: float | None = None
    copy_s: float | None = None


@dataclass(frozen=True)
class GpuLook:
    """One look at the GPU that is measured on.

    Attributes:
        foreign_processes: Compute processes on it that are not ours.
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        throttle: Names of the reasons for which the clock is held back.
        temperature_c: Degrees Celsius.
        power_w: Watts.
        memory_used_bytes: Memory in use, by whatever process.
    """

    foreign_processes: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle: frozenset[str] | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    memory_used_bytes: int | None = None

    @property
    def silent(self) -> bool:
        """Whether a cause of contamination could have gone unseen: no answer about processes or throttling."""
        return self.foreign_processes is None or self.throttle is None

    @property
    def power_capped(self) -> bool:
        """Whether the power cap held the clock back."""
        return POWER_CAP in (self.throttle or ())


@dataclass(frozen=True)
class Weather:
    """What happened while a run and its sentinels took place.

    Attributes:
        foreign_cpus: Cores that others took (processes, steal) of those this process may use, on average.
        idle_cpus: Cores of those that nobody used.
        gpu: All looks in one; None when no GPU is measured on.
    """

    foreign_cpus: float | None = None
    idle_cpus: float | None = None
    gpu: GpuLook | None = None


def all_looks(looks: Sequence[GpuLook]) -> GpuLook:
    """A run's looks as one: the worst of processes, throttling, temperature and memory; the middle of the rest."""
    throttles = [look.throttle for look in looks if look.throttle is not None]
    return GpuLook(
        foreign_processes=_over(max, [look.foreign_processes for look in looks]),
        sm_clock_mhz=_over(median, [look.sm_clock_mhz for look in looks]),
        memory_clock_mhz=_over(median, [look.memory_clock_mhz for look in looks]),
        throttle=frozenset().union(*throttles) if throttles else None,
        temperature_c=_over(max, [look.temperature_c for look in looks]),
        power_w=_over(fmean, [look.power_w for look in looks]),
        memory_used_bytes=_over(max, [look.memory_used_bytes for look in looks]),
    )


def _over(summary: Callable[[list[T]], T], values: Sequence[T | None]) -> T | None:
    known = [value for value in values if value is not None]
    return summary(known) if known else None
