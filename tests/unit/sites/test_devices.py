from __future__ import annotations

from typing import Any

import pytest

from nullarm.errors import UsageError
from nullarm.sites import devices
from nullarm.sites.devices import DEVICES, find_device, memory_bytes


def pretend(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found: tuple[dict[str, Any], ...] = tuple({"name": name, "memory_bytes": 5} for name in names)
    monkeypatch.setattr(devices, "gpus", lambda: found)


def test_a_device_is_found_by_name() -> None:
    assert find_device("h200").memory_bytes == 141 << 30
    with pytest.raises(UsageError, match=r"no device 'h20' \(did you mean 'h200'\?\); valid: a100-40, a100-80, cpu"):
        find_device("h20")


def test_this_machine_without_a_gpu_is_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert find_device(None) == DEVICES["cpu"]


@pytest.mark.parametrize(
    ("name", "like"),
    [("NVIDIA H200", "h200"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA A100-SXM4-40GB", "a100-40"),
     ("NVIDIA L40S", "l40s"), ("NVIDIA Something New", "rtx4090")],
)  # fmt: skip
def test_this_machine_is_known_by_its_gpu_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, like: str
) -> None:
    pretend(monkeypatch, name)
    found = find_device(None)
    assert (found.name, found.flops_per_s, found.memory_bytes) == (name, DEVICES[like].flops_per_s, 5)
    assert found.price_per_hour == 0.0
    assert found.fp64_flops_per_s == DEVICES[like].fp64_flops_per_s


def test_float64_is_slow_on_most_devices() -> None:
    rates = {name: device.flops_per_s / device.fp64_flops_per_s for name, device in DEVICES.items()}
    assert rates["cpu"] == 2
    assert min(rates["rtx4090"], rates["l40s"]) > 40
    assert max(rates["a100-80"], rates["h100"], rates["h200"]) < 12


def test_this_machine_has_memory() -> None:
    assert memory_bytes() > 1 << 20
