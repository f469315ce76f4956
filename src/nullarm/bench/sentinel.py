"""Fixed work that tells whether the device is as fast as it was: a GEMM and a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

import torch

from nullarm.bench.stopwatch import stopwatch
from nullarm.bench.weather import Reading

REPEATS = 7
"""Repetitions whose median is a reading: 10 to 30 ms each, and one hiccup of the scheduler does not show."""
LONG_ENOUGH_S = 1e-3
"""Below it, launching and the clock weigh more than the work."""
GEMM_SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
COPY_MIB = (8, 16, 32, 64, 128, 256, 512, 1024)

Work = Callable[[], object]


class Sentinel:
    """A GEMM and a copy on `device`, each of the first size that takes 1 ms; the sizes stay for the sentinel's life.

    Raises:
        RuntimeError: The device has no room for them (torch's own error).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gemm = self._first_long_enough(_gemm(side, device) for side in GEMM_SIDES)
        self._copy = self._first_long_enough(_copy(mib, device) for mib in COPY_MIB)

    def __call__(self) -> Reading:
        """One reading, after everything that was asked of the device has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Reading(self._seconds(self._gemm), self._seconds(self._copy))

    def _first_long_enough(self, works: Iterable[Work]) -> Work:
        for work in works:
            work()  # the first call also loads kernels and touches the memory
            if self._seconds(work) >= LONG_ENOUGH_S:
                break
        return work

    def _seconds(self, work: Work) -> float:
        watch = stopwatch(self._device)
        watch.mark()
        for _ in range(REPEATS):
            work()
            watch.mark()
        return median(watch.intervals_s())


def _gemm(side: int, device: torch.device) -> Work:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.linspace(-1, 1, side * side, device=device).to(dtype).view(side, side)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, left, out=out)


def _copy(mib: int, device: torch.device) -> Work:
    source = torch.ones(mib << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
