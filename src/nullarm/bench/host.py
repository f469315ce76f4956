"""CPU time that others take: what the kernel counts for our cores, less what this process used."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_TICKS_UNSURE = 2
"""Busy and own time are cut to whole ticks at both ends of a run, so as much is never charged to others."""


@dataclass(frozen=True)
class HostTimes:
    """Counters at one moment, in seconds.

    Attributes:
        wall_s: Monotonic clock.
        busy_s: Of the cores that this process may use: time not idle, stolen time included.
        idle_s: Of the same cores: idle time, that of waiting for disks included.
        own_s: CPU time of this process and of its children that have ended.
    """

    wall_s: float
    busy_s: float
    idle_s: float
    own_s: float


def host_times(stat: Path = _STAT) -> HostTimes | None:
    """The counters now; None where there is no `/proc/stat` (off Linux)."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    import resource  # only where there is a /proc

    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [[int(v) for v in line.split()[1:9]] for line in lines if line.split(maxsplit=1)[0] in mine]
    tick_s = _tick_s()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return HostTimes(
        wall_s=time.monotonic(),
        busy_s=tick_s * sum(sum(row) - row[3] - row[4] for row in rows),  # user nice system · · irq softirq steal
        idle_s=tick_s * sum(row[3] + row[4] for row in rows),
        own_s=sum(usage.ru_utime + usage.ru_stime for usage in usages),
    )


def load_between(before: HostTimes | None, after: HostTimes | None) -> tuple[float, float] | tuple[None, None]:
    """Cores used by others and cores idle between two moments, on average; None where it was not counted."""
    if before is None or after is None or after.wall_s <= before.wall_s:
        return None, None
    seconds = after.wall_s - before.wall_s
    foreign_s = after.busy_s - before.busy_s - (after.own_s - before.own_s) - _TICKS_UNSURE * _tick_s()
    return max(0.0, foreign_s / seconds), max(0.0, (after.idle_s - before.idle_s) / seconds)


def _tick_s() -> float:
    return 1 / os.sysconf("SC_CLK_TCK")
