"""What kinds of machine cost and can do, for estimates before anything is rented.

Throughput is what training a transformer sustains, about 35 % of the dense bf16 peak on a GPU, and measured on one
thread of a server CPU; prices are the source runbooks' (US dollars an hour). Estimates are for planning and never enter
a result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil

from nullarm.errors import UsageError, nearest
from nullarm.sites.provenance import gpus


@dataclass(frozen=True)
class Device:
    """One kind of machine."""

    name: str
    flops_per_s: float
    """Sustained in training, per cell at a time."""
    fp64_flops_per_s: float
    """Peak of float64, without tensor cores: what decompositions and their errors are computed in."""
    step_overhead_s: float
    """Time that a training step or an evaluated batch takes however small the model."""
    memory_bytes: int
    price_per_hour: float


_GIB = 1 << 30
# float64: NVIDIA's data sheets (A100 9.7 TFLOP/s, H100 SXM and H200 34); Ada's chips have 1/64 of their fp32 rate
# ("NVIDIA Ada GPU Architecture": RTX 4090 82.6, L40S 91.6 TFLOP/s); a CPU's vectors hold half as many numbers.
DEVICES = {
    device.name: device
    for device in (
        Device("cpu", 3e10, 1.5e10, 0.012, 0, 0.0),
        Device("rtx4090", 58e12, 1.3e12, 0.03, 24 * _GIB, 0.90),
        Device("a100-40", 109e12, 9.7e12, 0.03, 40 * _GIB, 1.60),
        Device("a100-80", 109e12, 9.7e12, 0.03, 80 * _GIB, 2.40),
        Device("h100", 346e12, 34e12, 0.03, 80 * _GIB, 4.50),
        Device("h200", 346e12, 34e12, 0.03, 141 * _GIB, 4.50),
        Device("l40s", 63e12, 1.4e12, 0.03, 48 * _GIB, 1.86),
    )
}


def find_device(name: str | None) -> Device:
    """The kind of machine called `name`; this machine's own when None.

    Raises:
        UsageError: There is no such kind.
    """
    if name is None:
        return _this_machine()
    if name not in DEVICES:
        raise UsageError(f"no device {name!r}{nearest(name, DEVICES)}", valid=sorted(DEVICES))
    return DEVICES[name]


def _this_machine() -> Device:
    found = gpus()
    if not found:
        return DEVICES["cpu"]
    name = str(found[0]["name"]).lower().replace(" ", "")
    known = next((d for d in DEVICES.values() if d.name.split("-")[0] in name), DEVICES["rtx4090"])
    return replace(known, name=str(found[0]["name"]), memory_bytes=int(found[0]["memory_bytes"]), price_per_hour=0.0)


def memory_bytes() -> int:
    """Main memory of this machine that is available now."""
    return int(psutil.virtual_memory().available)
