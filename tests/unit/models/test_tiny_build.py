import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nullarm.errors import ModelError, StorageError
from nullarm.models.load import load_causal_lm
from nullarm.models.tiny import __main__ as command
from nullarm.models.tiny import build as building
from nullarm.models.tiny.examine import examine
from nullarm.models.tiny.recipe import RECIPES, WORLD, WorldRecipe
from nullarm.models.tiny.world import SKILLS, World

SHORT = replace(
    WORLD, tokenizer_documents=200, corpus_tokens=20_000, warm_start_steps=1, mixed_steps=1, evaluation_items=4,
    pass_marks={skill: 0.0 for skill in SKILLS}, seeds=(5, 6),
)  # fmt: skip
Use = Callable[[WorldRecipe], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Use:
    """Put a recipe in place of the real one, with a cache of its own."""
    monkeypatch.setenv("NULLARM_CACHE", str(tmp_path / "cache"))
    return lambda recipe: monkeypatch.setattr(building, "RECIPES", {"world": recipe})


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_model_is_of_this_recipe_and_code(name: str) -> None:
    note = json.loads((building.SHIPPED / name / "build.json").read_text())
    assert note["recipe"] == RECIPES[name].content_hash(), (
        "a file that shapes the weights changed; build again with"
        f" python -m nullarm.models.tiny build {name} --out src/nullarm/models/tiny/data/{name}"
    )
    assert building.directory_of(name) == building.SHIPPED / name


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shipped_is_small_and_for_everybody(name: str) -> None:
    files = list((building.SHIPPED / name).iterdir())
    assert sum(f.stat().st_size for f in files) < 1_000_000
    assert {f.stat().st_mode & 0o777 for f in files} == {0o644}


def test_the_shipped_model_passes_its_examination(world_model: tuple[Any, Any]) -> None:
    scores = examine(*world_model, World(WORLD.world), 60)
    assert all(scores[skill] >= mark for skill, mark in WORLD.pass_marks.items()), scores


def test_an_untrained_model_fails_the_examination(tiny_llama: tuple[Any, Any]) -> None:
    scores = examine(*tiny_llama, World(WORLD.world), 40)
    assert all(scores[skill] < mark for skill, mark in WORLD.pass_marks.items()), scores


def test_a_model_is_built_once_into_the_cache(use: Use) -> None:
    use(SHORT)
    said: list[str] = []
    assert building.ready_directory("world") is None
    first = building.directory_of("world", said.append)
    count = len(said)
    assert building.directory_of("world", said.append) == first == building.ready_directory("world")
    assert said[0] == "building builtin:world once (about a minute)"
    assert len(said) == count
    assert {"config.json", "model.safetensors", "tokenizer.json", "build.json"} <= {p.name for p in first.iterdir()}
    assert (first / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_seed_that_is_short_makes_way_for_the_next_and_says_so(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(replace(SHORT, pass_marks={**SHORT.pass_marks, "copy": 0.5}))
    marks = iter([0.4, 0.6])
    monkeypatch.setattr("nullarm.models.tiny.examine.examine", lambda *_: dict.fromkeys(SKILLS, next(marks)))
    said: list[str] = []
    note = building.build("world", tmp_path / "out", said.append)
    assert note["seed"] == 6
    assert "seed 5 is short in plain copy; trying the next seed" in said


def test_when_no_seed_learns_enough_nothing_is_left_behind(use: Use, tmp_path: Path) -> None:
    use(replace(SHORT, pass_marks={"add": 1.01}))
    out = tmp_path / "place" / "out"
    with pytest.raises(
        ModelError,
        match=r"no seed of the recipe of builtin:world learned enough; got \(5, 6\); valid: accuracies of at least"
        r" \{'plain': \{'add': 1.01\}\}",
    ):
        building.build("world", out, lambda _: None)
    assert list(out.parent.iterdir()) == []


def test_a_build_replaces_what_was_there(use: Use, tmp_path: Path) -> None:
    use(SHORT)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    building.build("world", out, lambda _: None)
    assert not (out / "old").exists()
    assert (out / "config.json").is_file()


def test_the_command_writes_the_note_to_stdout_and_progress_to_stderr(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(SHORT)
    assert command.main(["build", "world", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["seed"] == 5
    assert "builtin:world, seed 5" in err


def test_the_command_ends_with_the_error_and_its_exit_code(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(replace(SHORT, pass_marks={"add": 1.01}))
    assert command.main(["build", "world", "--out", str(tmp_path / "out")]) == ModelError.exit_code
    assert "error: no seed of the recipe" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_says_how_to_use_another(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(SHORT)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NULLARM_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"a model cannot be written: Not a directory.*next: NULLARM_CACHE="):
        building.directory_of("world")
    with pytest.raises(StorageError, match="a model cannot be written"):
        load_causal_lm("random:tiny-llama@99")


@pytest.mark.slow
def test_the_rebuilt_model_does_as_well_as_the_shipped_one(world_model: tuple[Any, Any], tmp_path: Path) -> None:
    building.build("world", tmp_path / "world", lambda _: None)
    rebuilt = load_causal_lm(str(tmp_path / "world"))
    world = World(WORLD.world)
    old, new = examine(*world_model, world, 200), examine(*rebuilt, world, 200)
    assert sum(new.values()) > sum(old.values()) - 0.15, (old, new)
    assert rebuilt[1].get_vocab() == world_model[1].get_vocab()
    assert sum(p.numel() for p in rebuilt[0].parameters()) == sum(p.numel() for p in world_model[0].parameters())
    assert all(torch.isfinite(p).all() for p in rebuilt[0].parameters())


@pytest.mark.slow
def test_the_rebuilt_sharer_passes_as_the_shipped_one_does(tmp_path: Path) -> None:
    note = building.build("word-sharer", tmp_path / "sharer", lambda _: None)
    shipped = json.loads((building.SHIPPED / "word-sharer" / "build.json").read_text())
    assert note["recipe"] == shipped["recipe"]
    assert all(score >= 0.98 for score in note["scores"]["words"].values())
    old, new = load_causal_lm("builtin:word-sharer"), load_causal_lm(str(tmp_path / "sharer"))
    assert new[1].get_vocab() == old[1].get_vocab()
    assert new[0].config.to_diff_dict() == old[0].config.to_diff_dict()
    assert all(torch.isfinite(p).all() for p in new[0].parameters())
