"""Moments marked while something runs: by the clock on a CPU, by events in the queue of work on a GPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import torch


class Stopwatch(ABC):
    """Moments that are marked while something runs and read out together when it is over."""

    @abstractmethod
    def mark(self) -> None:
        """Mark the moment when everything asked of the device so far is done, without waiting for it."""

    @abstractmethod
    def intervals_s(self) -> list[float]:
        """Seconds from each mark to the next, [marks − 1]; waits for the last one."""


class HostStopwatch(Stopwatch):
    """For a CPU, where a call returns when its work is done."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def mark(self) -> None:
        """Mark this moment."""
        self._marks.append(time.perf_counter_ns())

    def intervals_s(self) -> list[float]:
        """Seconds from each mark to the next."""
        return [(end - start) / 1e9 for start, end in zip(self._marks, self._marks[1:], strict=False)]


class DeviceStopwatch(Stopwatch):
    """For a GPU: events in its queue of work, so that marking a token does not hold up the next one."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Put an event into the queue."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._marks.append(event)

    def intervals_s(self) -> list[float]:
        """Seconds from each event to the next, after the last one."""
        self._marks[-1].synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(self._marks, self._marks[1:], strict=False)]


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch of a device."""
    return DeviceStopwatch(device) if device.type == "cuda" else HostStopwatch()
