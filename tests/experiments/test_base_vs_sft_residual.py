"""The residual experiment: as a script, cell by cell, and with any pair that the environment names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "experiments" / "base_vs_sft_residual.py"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the configurations and the prompts, and nothing else."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "experiments" / "prompts", tmp_path / "experiments" / "prompts")
    return tmp_path


def run(place: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "DEV_MODE" and not k.startswith("RESIDUAL_")}
    return subprocess.run(
        [sys.executable, "-c", source], cwd=place, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_development_runs_whole_on_the_built_in_pair(place: Path) -> None:
    done = run(place, FILE.read_text(), DEV_MODE="True")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    written = [line.partition(": ")[2] for line in lines if "Wrote comparison JSON to: " in line]
    assert len(written) == 2
    assert all(Path(path).is_file() for path in written)
    assert "This is a smoke run, which never enters a verdict." in done.stdout
    assert list(place.glob("runs/*-smoke/grid.html"))


def test_development_can_be_set_by_hand_in_the_first_cell(place: Path) -> None:
    source = FILE.read_text()
    line = next(line for line in source.splitlines() if line.startswith("DEV_MODE = "))
    cells = [f"#{cell}" for cell in source.replace(line, "DEV_MODE = True").split("# %%")[1:]]
    driver = f"names = {{}}\nfor cell in {cells!r}:\n    exec(cell, names)\n"
    done = run(place, driver)
    assert done.returncode == 0, done.stderr
    assert "This is a smoke run" in done.stdout


def test_the_environment_names_another_pair_in_production(place: Path) -> None:
    (place / "prompts.txt").write_text("What is 3 + 4?\nWhat is 12 + 5 + 6?\n")
    settings = {
        "RESIDUAL_BASE_MODEL": "random:tiny-llama", "RESIDUAL_SFT_MODEL": "random:tiny-llama@1",
        "RESIDUAL_DEVICE": "cpu", "RESIDUAL_DTYPE": "fp32", "RESIDUAL_PROMPT_FILE": "prompts.txt",
    }  # fmt: skip
    done = run(place, FILE.read_text().replace("if DEV_MODE else ()", ""), **settings)
    assert done.returncode == 0, done.stderr
    assert "Normalized production prompts to" in "".join(
        log.read_text() for log in place.glob("runs/*/cells/*/log.txt")
    )
    assert "smoke" not in done.stdout
