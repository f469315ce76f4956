"""Access to models: what is here, what can be had, and the cure when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from nullarm.protocols import model_access as module
from nullarm.protocols.model_access import download_bytes, downloads, model_access
from nullarm.sites.preflight import Check

HUB = "mistralai/Mistral-7B-v0.1@27d67f1b5f57dc0953326b2601d68371d40ea8da"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A hub that answers as told, with nothing in the cache."""

    def install(
        answer: Exception | None = None, *, token: str | None = None, offline: bool = False, cache: Path | None = None
    ) -> None:
        def head(url: str, timeout: float) -> None:
            assert timeout == module.HUB_TIMEOUT_S
            assert url.endswith("27d67f1b5f57dc0953326b2601d68371d40ea8da/config.json")
            if answer:
                raise answer

        def cached(name: str, file: str, revision: str) -> str | None:
            return str(cache / file) if cache and (cache / file).exists() else None

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: offline)

    return install


def refused(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind.__new__(kind, "refused")  # its own constructor wants a response of the HTTP library of the day


def test_what_is_on_this_machine_needs_no_network(tmp_path: Path) -> None:
    assert model_access("builtin:world").ok
    assert model_access("random:tiny-qwen2").ok
    (tmp_path / "config.json").write_text("{}", "utf-8")
    bare = model_access(str(tmp_path))
    assert not bare.ok
    assert "has no weights" in bare.detail
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert model_access(str(tmp_path)).ok


@pytest.mark.parametrize("ref", ["no such model", "builtin:wrold", "/nowhere/at/all"])
def test_a_model_that_does_not_exist_fails_with_a_cure(ref: str) -> None:
    check = model_access(ref)
    assert not check.ok
    assert check.cure


def test_a_cached_model_needs_all_its_shards(hub: Callable[..., None], tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (tmp_path / "model-1.safetensors").touch()
    hub(offline=True, cache=tmp_path)
    assert not model_access(HUB).ok
    (tmp_path / "model-2.safetensors").touch()
    assert model_access(HUB) == Check("model", True, f"{HUB} is in the cache")


def test_offline_without_the_model_is_not_ready(hub: Callable[..., None]) -> None:
    hub(offline=True)
    check = model_access(HUB)
    assert not check.ok
    assert "HF_HUB_OFFLINE" in check.detail
    assert "hf download mistralai/Mistral-7B-v0.1 --revision 27d67f1b" in check.cure


def test_a_reachable_model_is_ready(hub: Callable[..., None]) -> None:
    hub(token="hf_x")
    check = model_access(HUB)
    assert check.ok
    assert check.detail.endswith("can be downloaded with your token")


@pytest.mark.parametrize(
    ("answer", "detail", "cure"),
    [
        (refused(errors.GatedRepoError), "is gated", "accept the licence at https://huggingface.co/mistralai/Mistral-7B-v0.1"),
        (refused(errors.RevisionNotFoundError), "has no revision 27d67f1b", "commits/main"),
        (refused(errors.RepositoryNotFoundError), "does not exist, or is private", "hf auth login"),
        (errors.EntryNotFoundError("no file"), "has no config.json", "tree/27d67f1b"),
        (OSError("no route"), "cannot be reached (no route)", "check the network"),
        (RuntimeError("what an HTTP library raises"), "cannot be reached (what an", "hf auth login"),
    ],
)  # fmt: skip
def test_every_refusal_has_its_cure(hub: Callable[..., None], answer: Exception, detail: str, cure: str) -> None:
    hub(answer)
    check = model_access(HUB)
    assert not check.ok
    assert detail in check.detail
    assert cure in check.cure


def test_without_a_token_a_gated_model_asks_for_the_login_too(hub: Callable[..., None]) -> None:
    hub(refused(errors.GatedRepoError))
    assert "hf auth login" in model_access(HUB).cure
    hub(refused(errors.GatedRepoError), token="hf_x")
    assert "hf auth login" not in model_access(HUB).cure


def test_downloads_are_counted_once_and_held_against_the_disk(hub: Callable[..., None], tmp_path: Path) -> None:
    hub()
    refs = ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", "builtin:world"]
    assert download_bytes(refs) == (2 * 494_032_768, ())
    assert download_bytes(["someone/something"]) == (0, ("someone/something",))
    assert downloads(refs, tmp_path).ok
    assert downloads(["builtin:world"], tmp_path).detail == "nothing to download"
    assert "of unknown size (someone/something)" in downloads(["someone/something"], tmp_path).detail


def test_downloads_that_do_not_fit_fail_with_a_cure(
    hub: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub()
    monkeypatch.setattr("nullarm.protocols.model_access.shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    check = downloads(["Qwen/Qwen2.5-7B"], tmp_path)
    assert not check.ok
    assert check.detail.startswith("14.2 GiB to ")
    assert "HF_HOME" in check.cure
