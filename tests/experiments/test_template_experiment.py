"""The template as people run it: whole, cell by cell, killed and started again, on another machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nullarm.models.tiny.world import SKILLS
from support.object_store import BUCKET, s3_server
from support.processes import eventually

ROOT = Path(__file__).parents[2]
SCRIPT = Path("experiments", "template_experiment.py")
RUN = "template_experiment-dev"


def project(directory: Path) -> Path:
    """A copy of what the template needs."""
    (directory / "experiments").mkdir(parents=True)
    shutil.copy(ROOT / SCRIPT, directory / SCRIPT)
    shutil.copytree(ROOT / "configs", directory / "configs")
    return directory


def start(directory: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("NULLARM_MIRROR", "DEV_MODE")}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "DEV_MODE": "True", **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    return out


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "runs" / RUN / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing has disturbed, and what it printed."""
    directory = project(tmp_path_factory.mktemp("whole"))
    return directory, finish(start(directory))


def test_as_a_script_it_trains_evaluates_draws_and_sums_up(whole: tuple[Path, str]) -> None:
    directory, out = whole
    found = summary(directory)
    first, *_, last = (float(loss) for loss in re.findall(r"loss (\d\.\d+)", out))
    assert last < first / 1.5
    assert found["loss"] == pytest.approx(last, abs=1e-3)
    assert found["accuracy"].keys() == set(SKILLS)
    assert found["resumed_from"] is None
    assert 0 < found["cost_of_this_run"] < 0.2
    assert re.search(r"parameters; expected: \S+ h, \$0\.00\n", out)
    assert "Accuracy (chance 0.25)" in (directory / "runs" / RUN / "figure.html").read_text()
    assert len(list((directory / "checkpoints" / RUN).glob("step-*"))) == 3


def test_cell_by_cell_it_does_the_same_and_a_cell_may_be_run_again(
    whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = project(tmp_path / "project")
    monkeypatch.chdir(directory / "experiments")  # where editors start
    for name, value in {"DEV_MODE": "True", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    cells = re.split(r"^# %% ", (ROOT / SCRIPT).read_text(), flags=re.MULTILINE)
    titles = [cell.split()[0].rstrip(":") for cell in cells[1:]]
    assert titles == ["Setup", "GPU", "Data", "Model", "Training", "Evaluation", "Plot", "Summary"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec("# " + cell if cell is not cells[0] else cell, names)
    first = summary(directory)
    assert (first["loss"], first["accuracy"]) == (summary(whole[0])["loss"], summary(whole[0])["accuracy"])
    for cell in cells[titles.index("Training") + 1 :]:
        exec("# " + cell, names)
    again = summary(directory)
    assert again["resumed_from"] == first["steps"]
    assert (again["loss"], again["accuracy"]) == (first["loss"], first["accuracy"])


def stop_in_mid_training(directory: Path, how: signal.Signals, **environment: str) -> int:
    """Start, send the signal once there is a checkpoint, and wait; the exit code."""
    with start(directory, **environment) as process:
        checkpoints = directory / "checkpoints" / RUN
        eventually(lambda: any(checkpoints.glob("step-*")) or process.poll() is not None, "a first checkpoint")
        process.send_signal(how)
        process.communicate()
        return process.returncode


def test_killed_and_started_again_it_ends_as_if_it_had_not_been(whole: tuple[Path, str], tmp_path: Path) -> None:
    directory = project(tmp_path / "project")
    assert stop_in_mid_training(directory, signal.SIGKILL) == -signal.SIGKILL
    finish(start(directory))
    found, expected = summary(directory), summary(whole[0])
    assert 10 <= found["resumed_from"] < expected["steps"]
    assert (found["loss"], found["accuracy"]) == (expected["loss"], expected["accuracy"])


def test_preempted_it_goes_on_on_another_machine(whole: tuple[Path, str], tmp_path: Path) -> None:
    first, second = project(tmp_path / "first"), project(tmp_path / "second")
    with s3_server(tmp_path / "s3") as server:
        mirror = {**server.environment, "NULLARM_MIRROR": f"s3://{BUCKET}/experiments"}
        assert stop_in_mid_training(first, signal.SIGTERM, **mirror) == 75
        finish(start(second, **mirror))
    found, expected = summary(second), summary(whole[0])
    assert 10 <= found["resumed_from"] < expected["steps"]
    assert (found["loss"], found["accuracy"]) == (expected["loss"], expected["accuracy"])


def test_production_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with start(project(tmp_path / "project"), DEV_MODE="") as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == "production needs a GPU and there is none; next: set DEV_MODE=True\n"


FAKE_WANDB = """
import json, sys
class Run:
    def log(self, values, step):
        print("tracked", step, json.dumps(values))
def init(project, name, id, resume, config):
    print("tracking", name, id == name, resume, config["model"]["layers"])
    return Run()
"""


def test_where_tracking_is_on_every_step_is_tracked(tmp_path: Path) -> None:
    directory = project(tmp_path / "project")
    config = directory / "configs" / "dev_config.yaml"
    config.write_text(config.read_text().replace("wandb: false", "wandb: true"))
    (directory / "experiments" / "wandb.py").write_text(FAKE_WANDB)
    out = finish(start(directory))
    assert f"tracking {RUN} True allow 2" in out
    assert re.findall(r"^tracked (\d+)", out, re.MULTILINE) == [str(step) for step in range(1, 65)]
