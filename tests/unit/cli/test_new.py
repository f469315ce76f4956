"""`nullarm new`, from a checkout and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from support.command import nullarm

ROOT = Path(__file__).parents[3]
TEMPLATE = (ROOT / "experiments" / "template_experiment.py").read_text()
CONFIGS = {name: (ROOT / "configs" / name).read_bytes() for name in ("dev_config.yaml", "prod_config.yaml")}
PROMPTS = Path("experiments/prompts/prod_prompts.txt")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_experiment_bears_its_name_and_finds_its_configurations(here: Path) -> None:
    outcome = nullarm("new", "my_question")
    assert outcome.code == 0
    text = (here / "experiments" / "my_question.py").read_text()
    assert text.startswith('"""my_question: ')
    assert 'NAME = "my_question"' in text
    assert "python experiments/my_question.py" in text
    assert text.replace("my_question", "template_experiment") == TEMPLATE
    assert {path.name: path.read_bytes() for path in (here / "configs").iterdir()} == CONFIGS
    assert (here / PROMPTS).read_bytes() == (ROOT / PROMPTS).read_bytes()
    assert outcome.out.splitlines()[-1].startswith("next: DEV_MODE=True python experiments/my_question.py, or open it")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_file_that_the_configurations_name_is_there(here: Path, name: str) -> None:
    nullarm("new", "mine")
    named = yaml.safe_load((here / "configs" / name).read_text())["residual_compare"]["prompt_file"]
    assert (here / named).is_file()


def test_configurations_that_are_there_stay(here: Path) -> None:
    (here / "configs").mkdir()
    (here / "configs" / "dev_config.yaml").write_text("mine: true\n")
    outcome = nullarm("new", "other", "--dir", "deep/er")
    assert outcome.out.splitlines()[:-1] == [
        "wrote deep/er/other.py", "wrote configs/prod_config.yaml", f"wrote {PROMPTS}",
    ]  # fmt: skip
    assert (here / "configs" / "dev_config.yaml").read_text() == "mine: true\n"


def test_an_existing_file_is_not_touched(here: Path) -> None:
    nullarm("new", "mine")
    (here / "experiments" / "mine.py").write_text("my work\n")
    outcome = nullarm("new", "mine")
    assert outcome.code == 2
    assert outcome.error.endswith("experiments/mine.py exists already; next: nullarm new OTHER_NAME")
    assert (here / "experiments" / "mine.py").read_text() == "my work\n"


@pytest.mark.parametrize("name", ["my-question", "2nd", "class", "a/b", "../up", "mine.py", ""])
def test_what_is_no_name_is_refused(here: Path, name: str) -> None:
    outcome = nullarm("new", name)
    assert outcome.code == 2
    assert f"an experiment is called what a Python module may be called; got {name!r}" in outcome.error
    assert "valid: letters, digits and _, no digit first; next: nullarm new my_experiment" in outcome.error
    assert list(here.iterdir()) == []


def test_an_installed_wheel_has_the_template(here: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(here), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(here / "unpacked")
    environment = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
    subprocess.run(
        [sys.executable, "-m", "nullarm", "new", "mine"], env={**environment, "PYTHONPATH": str(here / "unpacked")},
        cwd=here, capture_output=True, check=True,
    )  # fmt: skip
    assert (here / "experiments" / "mine.py").read_text() == TEMPLATE.replace("template_experiment", "mine")
    assert {path.name: path.read_bytes() for path in (here / "configs").iterdir()} == CONFIGS
    assert (here / PROMPTS).read_bytes() == (ROOT / PROMPTS).read_bytes()
