"""The real worker on this machine, with faults injected on a seeded schedule: for tests, ours and users'."""

from __future__ import annotations

import queue
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from nullarm.engines.base import Ended, Engine, Event, Job
from nullarm.engines.local import LocalEngine
from nullarm.errors import UsageError

Fault = Literal["kill", "lie", "vanish", "repeat"]


@dataclass(frozen=True)
class Faults:
    """Probability of each fault for one attempt at one cell; which attempt gets which follows from `seed` alone.

    - `kill`: the worker gets SIGKILL after a random time within `kill_within_s`.
    - `lie`: the engine says "ended, code 0" and never ran the job.
    - `vanish`: the engine says that the worker is gone while it goes on working (and will write late).
    - `repeat`: every event arrives twice.
    """

    seed: int = 0
    kill: float = 0.0
    lie: float = 0.0
    vanish: float = 0.0
    repeat: float = 0.0
    kill_within_s: float = 2.0

    def __post_init__(self) -> None:
        """Check that the probabilities are some."""
        total = self.kill + self.lie + self.vanish + self.repeat
        if min(self.kill, self.lie, self.vanish, self.repeat) < 0 or total > 1:
            raise UsageError("the probabilities of the faults", value=total, valid="each ≥ 0, together ≤ 1")

    def draw(self, job: Job) -> tuple[Fault | None, random.Random]:
        """The fault of this attempt, and the generator for its details."""
        rng = random.Random(f"{self.seed}/{job.cell_id}/{job.attempt}")
        names: tuple[Fault, ...] = ("kill", "lie", "vanish", "repeat")
        point = rng.random()
        for name in names:
            point -= getattr(self, name)
            if point < 0:
                return name, rng
        return None, rng


@final
class FakeEngine(Engine):
    """A `LocalEngine` seen through `faults`.

    Args:
        faults: What goes wrong, and how often.
        at_once: Cells at a time.
    """

    def __init__(self, faults: Faults, at_once: int = 2) -> None:
        self._faults = faults
        self._inner = LocalEngine(at_once=at_once)
        self._made_up: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._given_up: set[tuple[Path, str, int]] = set()
        self._repeated: set[tuple[Path, str, int]] = set()
        self._submitted: set[tuple[Path, str, int]] = set()
        self._timers: list[threading.Timer] = []

    def room(self) -> int:
        """Free slots; a vanished worker that still works takes one."""
        return self._inner.room()

    def submit(self, job: Job) -> None:
        """Start a job, or pretend to."""
        key = job.key
        if key in self._submitted:
            return
        self._submitted.add(key)
        fault, rng = self._faults.draw(job)
        if fault == "lie":
            self._made_up.put(Ended(job, 0))
            return
        self._inner.submit(job)
        if fault == "vanish":
            self._given_up.add(key)
            self._made_up.put(Ended(job, None))
        if fault == "repeat":
            self._repeated.add(key)
        if fault == "kill":
            delay = rng.uniform(0, self._faults.kill_within_s)
            timer = threading.Timer(delay, self._inner.cancel, (job.cell_id,), {"at_once": True})
            timer.daemon = True
            timer.start()
            self._timers.append(timer)

    def poll(self, timeout_s: float) -> list[Event]:
        """Events, true and made up."""
        events: list[Event] = []
        while not self._made_up.empty():
            events.append(self._made_up.get())
        for event in self._inner.poll(0 if events else timeout_s):
            if event.job.key not in self._given_up:
                events.extend([event] * (2 if event.job.key in self._repeated else 1))
        return events

    def cancel(self, cell_id: str, *, at_once: bool = False) -> None:
        """Pass on."""
        self._inner.cancel(cell_id, at_once=at_once)

    def logs(self, root: Path, cell_id: str) -> str:
        """Pass on."""
        return self._inner.logs(root, cell_id)

    def fetch(self, root: Path, cell_id: str) -> None:
        """Pass on."""
        self._inner.fetch(root, cell_id)

    def close(self) -> None:
        """End every job, also the vanished ones."""
        for timer in self._timers:
            timer.cancel()
        self._inner.close()
