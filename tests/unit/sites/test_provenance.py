from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import nullarm
from nullarm.sites.provenance import git_state, gpus, provenance


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    gpus.cache_clear()
    yield
    gpus.cache_clear()


def nvidia_smi(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program of that name first on the path."""
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_provenance_is_plain_data_about_this_process() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found["nullarm"] == nullarm.__version__
    assert set(found["packages"]) >= {"torch", "numpy", "pyarrow"}
    assert found["host"]


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "f").write_text("1")
    git(tmp_path, "add", "f")
    git(tmp_path, "commit", "-qm", "first")
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "untracked").write_text("")
    assert git_state(tmp_path) == state
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path) == {**state, "changed": True}


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None


def test_a_machine_without_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert gpus() == ()


def test_gpus_as_the_driver_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 143000, 570.86.15'")
    assert gpus() == (
        {"name": "NVIDIA H200", "memory_bytes": 143771 << 20, "free_bytes": 143000 << 20, "driver": "570.86.15"},
    )


@pytest.mark.parametrize(
    "script", ["exit 9", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'"]
)
def test_a_driver_that_does_not_tell_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert gpus() == ()


def test_a_gpu_that_shares_the_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA GB10, [N/A], [N/A], 580.95.05'")
    (found,) = gpus()
    assert (found["name"], found["memory_bytes"]) == ("NVIDIA GB10", psutil.virtual_memory().total)
    assert 0 < found["free_bytes"] <= found["memory_bytes"]
