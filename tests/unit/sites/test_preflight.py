from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from nullarm.sites import preflight
from nullarm.sites.preflight import Check, check_machine, existing_parent
from nullarm.study.plan import Cell, Estimate, Plan
from support.rehearsals import study

_Usage = namedtuple("_Usage", "total used free")
GIB = 1 << 30


def plan(memory_gib: int = 1, disk_gib: int = 1, model: str = "builtin:world@0") -> Plan:
    cell = Cell(
        protocol="p", version=1, stage="s", parameters={}, seed=0, inputs={"model": model},
        estimate=Estimate(1.0, disk_gib * GIB, memory_gib * GIB),
    )  # fmt: skip
    return Plan((cell,))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with 8 GiB of memory, 10 GiB of disk and no GPU, until a test changes it."""
    has: dict[str, Any] = {"memory": 8 * GIB, "disk": 10 * GIB, "gpus": ()}
    monkeypatch.setattr(preflight, "memory_bytes", lambda: has["memory"])
    monkeypatch.setattr(preflight, "gpus", lambda: has["gpus"])
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: _Usage(0, 0, has["disk"]))  # type: ignore[attr-defined]
    return has


def checks(root: Path, of: Plan, changes: dict[str, Any] | None = None) -> dict[str, Check]:
    return {check.name: check for check in check_machine(study(changes), of, root)}


def test_a_machine_that_is_ready(machine: dict[str, Any], tmp_path: Path) -> None:
    found = checks(tmp_path, plan())
    assert {name: check.ok for name, check in found.items()} == {
        "gpu": True, "memory": True, "disk": True, "cache": True,
    }  # fmt: skip
    assert found["gpu"].detail == "not needed"


def test_too_little_memory(machine: dict[str, Any], tmp_path: Path) -> None:
    check = checks(tmp_path, plan(memory_gib=9))["memory"]
    assert (check.ok, check.detail) == (False, "8.00 GiB available, a cell needs about 9.00 GiB")
    assert "--at-once 1" in check.cure


def test_too_little_disk_counts_a_reserve(machine: dict[str, Any], tmp_path: Path) -> None:
    assert checks(tmp_path / "not" / "there", plan(disk_gib=8))["disk"].ok
    check = checks(tmp_path / "not" / "there", plan(disk_gib=9))["disk"]
    assert not check.ok
    assert check.detail == f"10.00 GiB free at {tmp_path}, the study needs about 10.80 GiB"
    assert "--dir" in check.cure


@pytest.mark.parametrize(
    ("free_gib", "needed", "ok"), [([80, 80], 2, True), ([80], 2, False), ([80, 1], 2, False), ([], 1, False)]
)
def test_gpus_must_be_there_and_free(
    machine: dict[str, Any], tmp_path: Path, free_gib: list[int], needed: int, ok: bool
) -> None:
    machine["gpus"] = tuple({"free_bytes": gib * GIB} for gib in free_gib)
    check = checks(tmp_path, plan(memory_gib=40), {"resources.gpus": needed})["gpu"]
    assert check.ok == ok
    assert f"{len(free_gib)} found" in check.detail


def test_hub_models_need_room_in_their_cache(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    of = plan(memory_gib=6, disk_gib=0, model="hub:org/name@main")
    check = checks(tmp_path, of)["cache"]
    assert not check.ok
    assert f"HF_HOME={tmp_path}/hf, 10.00 GiB free, hub:org/name may need 12.00 GiB" in check.detail
    machine["disk"] = 13 * GIB
    assert checks(tmp_path, of)["cache"].ok


def test_the_nearest_directory_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_parent(Path("runs/x")) == tmp_path
