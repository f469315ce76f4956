"""What a user gets from `pip install`: code, templates, built-in models, shipped studies."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked."""
    directory = tmp_path_factory.mktemp("wheel")
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_every_file_of_the_package_is_in_the_wheel(unpacked: Path) -> None:
    package = ROOT / "src" / "nullarm"
    ours = {
        path.relative_to(package) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    theirs = {path.relative_to(unpacked / "nullarm") for path in (unpacked / "nullarm").rglob("*") if path.is_file()}
    assert ours <= theirs
    assert {Path("py.typed"), Path("report/templates/report.html.j2")} <= theirs
    assert Path("models/tiny/data/world/model.safetensors") in theirs


def test_the_shipped_studies_are_found_in_an_installed_wheel(unpacked: Path) -> None:
    studies = {path.name: path.read_bytes() for path in (ROOT / "studies").glob("*.yaml")}
    shipped = {path.name: path.read_bytes() for path in (unpacked / "nullarm" / "shipped_studies").iterdir()}
    assert shipped == studies
    script = "from nullarm.study.shipped import study_path; print(study_path('rank_mechanism_tiny'))"
    environment = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
    found = subprocess.run(
        [sys.executable, "-c", script], env={**environment, "PYTHONPATH": str(unpacked)},
        cwd=unpacked, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).parent == unpacked / "nullarm" / "shipped_studies"


def _files(root: Path) -> set[Path]:
    found = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}
