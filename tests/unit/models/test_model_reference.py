import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.errors import ModelError
from nullarm.models.hashing import file_sha256
from nullarm.models.reference import Reference, content_id, parse
from nullarm.models.tiny.recipe import WORLD


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("builtin:world", Reference("builtin", "world")),
        ("random:tiny-llama", Reference("random", "tiny-llama")),
        ("random:tiny-llama@3", Reference("random", "tiny-llama", seed=3)),
        ("mistralai/Mistral-7B-v0.1", Reference("hub", "mistralai/Mistral-7B-v0.1", revision="main")),
        ("Qwen/Qwen2.5-7B@abc123", Reference("hub", "Qwen/Qwen2.5-7B", revision="abc123")),
    ],
)
def test_references_are_taken_apart(ref: str, expected: Reference) -> None:
    assert parse(ref) == expected


def test_a_directory_is_recognised_with_and_without_a_leading_dot(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    for ref in ("model", "./model", str(directory)):
        assert parse(ref).kind == "directory"


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("builtin:wrld", "did you mean 'world'"),
        ("random:tiny-lama", "did you mean 'tiny-llama'"),
        ("random:tiny-llama@x", "not a whole number"),
        ("/nowhere/model", "the model directory is missing"),
        ("world", "did you mean 'builtin:world'"),
    ],
)
def test_wrong_references_name_culprit_and_valid_ones(ref: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(ref)
    assert words in str(caught.value)
    assert repr(ref) in str(caught.value)
    assert "valid: " in str(caught.value)


def test_a_directory_without_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json.*next: ls "):
        content_id(str(tmp_path))


def test_a_directory_with_an_adapter_is_one_where_an_adapter_will_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert parse(str(tmp_path), adapter=True) == Reference("adapter", str(tmp_path))
    for read in (parse, content_id):
        with pytest.raises(ModelError, match=r"holds a PEFT adapter, and a whole model is needed.*next: grep base_m"):
            read(str(tmp_path))


def test_an_adapter_beside_a_whole_model_is_part_of_the_model(directory: Path) -> None:
    before = content_id(str(directory))
    (directory / "adapter_config.json").write_text("{}")
    assert parse(str(directory), adapter=True).kind == "directory"
    assert content_id(str(directory)) != before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_named_by_its_files(tmp_path: Path, name: str) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / file).write_bytes(b"one")
    before = content_id(str(tmp_path), adapter=True)
    assert before.startswith("adapter:")
    (tmp_path / name).write_bytes(b"two")
    assert content_id(str(tmp_path), adapter=True) != before


def test_a_copy_of_a_directory_has_the_same_content(directory: Path) -> None:
    copy = directory.rename(directory.parent / "elsewhere")
    directory.mkdir()
    for file in copy.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    assert content_id(str(copy)) == content_id(str(directory))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_file_changes_the_content(directory: Path, name: str) -> None:
    before = content_id(str(directory))
    (directory / name).write_bytes(b"other")
    assert content_id(str(directory)) != before


def test_a_readme_is_no_content(directory: Path) -> None:
    before = content_id(str(directory))
    (directory / "README.md").write_text("hello")
    assert content_id(str(directory)) == before


def test_an_unchanged_file_is_hashed_once_and_a_changed_one_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "model.safetensors"
    first = file_sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert file_sha256(path) == first
    stat = path.stat()
    path.write_bytes(b"WEIGHTS")  # the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_sha256(path) != first


def test_a_damaged_note_of_a_hash_is_not_believed(directory: Path) -> None:
    path = directory / "model.safetensors"
    first = file_sha256(path)
    for note in Path(os.environ["NULLARM_CACHE"], "file-hashes").iterdir():
        note.write_text("{")
    assert file_sha256(path) == first


def test_a_built_in_model_is_named_by_its_recipe() -> None:
    assert content_id("builtin:world") == f"builtin:world@{WORLD.content_hash()}"
    assert replace(WORLD, mixed_steps=901).content_hash() != WORLD.content_hash()
    assert replace(WORLD, world=replace(WORLD.world, seed=1)).content_hash() != WORLD.content_hash()


def test_random_models_are_named_by_shape_and_seed() -> None:
    ids = {content_id(ref) for ref in ("random:tiny-llama", "random:tiny-llama@1", "random:tiny-mistral")}
    assert len(ids) == 3
    assert content_id("random:tiny-llama@0") == content_id("random:tiny-llama")


def test_hub_models_are_named_by_id_and_revision() -> None:
    assert content_id("Qwen/Qwen2.5-7B") == "hub:Qwen/Qwen2.5-7B@main"


def test_planning_imports_no_torch() -> None:
    program = """
import json, sys
from nullarm.models import content_id, linear_shapes, parameter_count
from nullarm.models.tasks import make_task
task = make_task({"kind": "world_relations"})
planted = make_task({"kind": "planted"})
out = [content_id("builtin:world"), parameter_count("builtin:world"), len(linear_shapes("random:planted"))]
out += [task.content_id(), task.count("test"), planted.content_id(), planted.count("train"), len(planted.ranks())]
print(json.dumps([out, [m for m in ("torch", "transformers", "numpy") if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    answers, heavy = json.loads(done.stdout)
    assert heavy == []
    assert answers[1:3] == [171_968, 14]
