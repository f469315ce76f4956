"""The instruments of one device, opened together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nullarm.bench.gpu_probe import GpuProbe
from nullarm.bench.sentinel import Sentinel
from nullarm.bench.session import Instruments
from nullarm.bench.telemetry import Telemetry


@contextmanager
def instruments(device: torch.device, *, ours: int = 1) -> Iterator[Instruments]:
    """Sentinels on `device`, and telemetry of it and of the host.

    Args:
        device: Where the arms run.
        ours: Processes of the session that are on the GPU at a time, `BenchSettings.processes`.
    """
    if device.type != "cuda":
        yield Instruments(Sentinel(device), Telemetry().watch)
        return
    with GpuProbe(f"GPU-{torch.cuda.get_device_properties(device).uuid}", ours=ours) as probe:
        yield Instruments(Sentinel(device), Telemetry(probe).watch)
