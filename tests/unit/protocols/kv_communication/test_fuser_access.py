"""Access to fusers and data sets, and where a fuser's reference points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from nullarm.errors import ModelError
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.kv_communication.fuser.access import fuser_access
from nullarm.protocols.kv_communication.fuser.reference import HubFuser, find, fuser_content_id, local_directory
from nullarm.protocols.model_access import task_access
from nullarm.sites.preflight import Check

REF = "hf:nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser/final"
PLACE = HubFuser("nics-efc/C2C_Fuser", "qwen3_0.6b+qwen2.5_0.5b_Fuser/final", "main")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A hub that answers as told."""

    def install(answer: Exception | None = None, *, offline: bool = False, cached: str | None = None) -> None:
        def head(url: str, timeout: float) -> None:
            assert url.endswith("final/projector_config.json")
            if answer:
                raise answer

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words, revision: cached)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: offline)

    return install


def test_a_reference_names_repository_folder_and_revision() -> None:
    assert find(REF) == PLACE
    assert find(f"{REF}@f01fc32") == HubFuser(PLACE.repository, PLACE.folder, "f01fc32")
    assert fuser_content_id(REF) == "hub:nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser/final@main"


@pytest.mark.parametrize("ref", ["hf:nobody", "/nowhere", "hf:a/b@c"])
def test_a_fuser_that_does_not_exist_fails_with_a_cure(ref: str) -> None:
    check = fuser_access(ref)
    assert not check.ok
    assert check.cure


def test_a_directory_is_named_by_its_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "projector_config.json").write_text("{}")
        (tmp_path / name / "projector_0.pt").write_bytes(b"weights")
    assert fuser_content_id(str(tmp_path / "one")) == fuser_content_id(str(tmp_path / "two"))
    (tmp_path / "two" / "projector_0.pt").write_bytes(b"others")
    assert fuser_content_id(str(tmp_path / "one")) != fuser_content_id(str(tmp_path / "two"))
    assert fuser_access(str(tmp_path / "one")).ok
    assert local_directory(str(tmp_path / "one")) == tmp_path / "one"


def test_fusers_on_the_hub(hub: Callable[..., None]) -> None:
    hub()
    assert fuser_access(REF) == Check("fuser", True, f"{REF.removeprefix('hf:')}@main can be downloaded")
    hub(cached="/cache/projector_config.json")
    assert fuser_access(REF).detail.endswith("is in the cache")
    hub(offline=True)
    check = fuser_access(REF)
    assert not check.ok
    assert "--include 'qwen3_0.6b+qwen2.5_0.5b_Fuser/final/*'" in check.cure
    hub(OSError("no route"))
    assert "cannot be reached (no route)" in fuser_access(REF).detail


def test_a_fuser_is_downloaded_by_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def download(repository: str, *, revision: str, allow_patterns: str) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert local_directory(REF) == tmp_path / "qwen3_0.6b+qwen2.5_0.5b_Fuser" / "final"
    assert asked == [("nics-efc/C2C_Fuser", "main", "qwen3_0.6b+qwen2.5_0.5b_Fuser/final/*")]

    def unreachable(*words: object, **more: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"neither cached nor reachable: no route; .* next: hf download nics-efc"):
        local_directory(REF)


def test_data_sets_are_read_before_anything_is_rented(tmp_path: Path) -> None:
    assert task_access("w", make_task({"kind": "world_relations", "test_items": 7})) == Check(
        "data set", True, "w: 7 items"
    )
    check = task_access("o", make_task({"kind": "openbookqa", "path": str(tmp_path)}))
    assert not check.ok
    assert "the data file is missing" in check.detail
