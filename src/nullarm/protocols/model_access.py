"""Whether a study's models are here, or can be had: looked at before anything is rented."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nullarm.errors import DatasetError, ModelError
from nullarm.models.facts import parameter_count, tensor_shapes
from nullarm.models.gguf import configuration, read_header
from nullarm.models.reference import Reference, parse
from nullarm.models.tasks.base import Task
from nullarm.models.texts.base import Text
from nullarm.models.tiny.build import ready_directory
from nullarm.sites.preflight import Check, existing_parent
from nullarm.store.files import read_json

HUB_TIMEOUT_S = 10.0
MODEL, TASK, TEXT, DOWNLOADS = "model", "data set", "text", "downloads"
"""Names of the checks."""


def model_access(model_ref: str, *, adapter: bool = False) -> Check:
    """Whether the model is here, or can be downloaded with the token that is here.

    Args:
        model_ref: A model reference (see `nullarm.models.reference`).
        adapter: Whether a PEFT adapter will do.
    """
    try:
        reference = parse(model_ref, adapter=adapter)
        if reference.on_hub:
            return _hub(reference)
        if reference.kind == "gguf":
            return _gguf(Path(reference.name))
        if reference.kind in ("directory", "adapter"):
            return _directory(Path(reference.name))
    except ModelError as error:
        return Check(MODEL, False, error.problem, error.next_command or f"name a model that exists: {error.valid}")
    built = reference.kind == "random" or ready_directory(reference.name) is not None
    return Check(MODEL, True, f"{model_ref} is at hand" if built else f"{model_ref} is built on first use, in a minute")


def task_access(name: str, task: Task) -> Check:
    """Whether the items of a data set can be had: its test split is read.

    Args:
        name: What to call it.
        task: The data set.
    """
    try:
        return Check(TASK, True, f"{name}: {len(task.items('test')):,} items")
    except DatasetError as error:
        return Check(TASK, False, f"{name}: {error.problem}", error.next_command or error.valid)


def text_access(text: Text) -> Check:
    """Whether the documents of a text can be had: its test split is read.

    Args:
        text: The text.
    """
    try:
        return Check(TEXT, True, f"{text.name}: {len(text.documents('test')):,} documents")
    except DatasetError as error:
        return Check(TEXT, False, f"{text.name}: {error.problem}", error.next_command or error.valid)


def downloads(refs: Iterable[str], home: Path | None = None) -> Check:
    """Whether the hub models that are not here yet fit on the disk they are downloaded to.

    Args:
        refs: Model references.
        home: Where they go; `HF_HOME` when left out.
    """
    home = home or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    need, unknown = download_bytes(refs)
    free = shutil.disk_usage(existing_parent(home)).free
    if not need and not unknown:
        return Check(DOWNLOADS, True, "nothing to download")
    more = f", and {len(unknown)} of unknown size ({', '.join(unknown)})" if unknown else ""
    detail = f"{_gib(need)} to {home}{more}; {_gib(free)} free"
    return Check(DOWNLOADS, free >= need, detail, "export HF_HOME=/path/on/a/disk/with/room")


def download_bytes(refs: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    """Bytes of the weights, in half precision, of hub models that are not in the cache; and those of unknown size."""
    need, unknown = 0, []
    for ref in dict.fromkeys(refs):
        try:
            reference = parse(ref, adapter=True)
            if reference.on_hub and not _cached(reference):
                need += 2 * parameter_count(ref)
        except ModelError:
            unknown.append(ref)
    return need, tuple(unknown)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _directory(path: Path) -> Check:
    if not tensor_shapes(path):
        return Check(MODEL, False, f"{path} has no weights", "put *.safetensors files beside its config.json")
    return Check(MODEL, True, f"{path} has weights")


def _gguf(path: Path) -> Check:
    configuration(read_header(path))
    return Check(MODEL, True, f"{path} is whole, and of a known architecture")


def _hub(reference: Reference) -> Check:
    from huggingface_hub import get_token, is_offline_mode

    file = reference.file or "config.json"
    name = f"{reference.name}@{reference.revision}"
    if _cached(reference):
        return Check(MODEL, True, f"{name} is in the cache")
    download = " ".join(["hf download", reference.name, *filter(None, [reference.file])])
    download += f" --revision {reference.revision}"
    if is_offline_mode():
        return Check(MODEL, False, f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
                     f"unset HF_HUB_OFFLINE, or on a machine with a network: {download}")  # fmt: skip
    refusal = hub_refusal(reference.name, reference.revision, file)
    if refusal is None:
        return Check(MODEL, True, f"{name} can be downloaded" + (" with your token" if get_token() else ""))
    return Check(MODEL, False, *refusal)


def _cached(reference: Reference) -> bool:
    """Whether the GGUF file, or configuration and every weight file, are in the hub's cache."""
    if reference.file:
        return _cached_file(reference, reference.file) is not None
    found = {name: _cached_file(reference, name) for name in ("config.json", "model.safetensors", _INDEX)}
    if found["config.json"] is None:
        return False
    if found["model.safetensors"] is not None:
        return True
    index = found[_INDEX]
    return index is not None and all(
        _cached_file(reference, name) for name in set(read_json(index)["weight_map"].values())
    )


_INDEX = "model.safetensors.index.json"


def _cached_file(reference: Reference, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path: Any = try_to_load_from_cache(reference.name, name, revision=reference.revision)
    return Path(path) if isinstance(path, str) else None


def hub_refusal(name: str, revision: str, file: str) -> tuple[str, str] | None:
    """Why the hub would not hand out a file of a repository, with the cure; None when it would.

    Args:
        name: The repository, `org/name`.
        revision: Its revision.
        file: Path of the file in it.
    """
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    page = f"https://huggingface.co/{name}"
    login = "`hf auth login` with a token from https://huggingface.co/settings/tokens"
    licence = f"accept the licence at {page}" + ("" if get_token() else f", then {login}")
    url = hf_hub_url(name, file, revision=revision)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except errors.GatedRepoError:
        return f"{name} is gated and your account has no access", licence
    except errors.RevisionNotFoundError:
        return f"{name} has no revision {revision}", f"choose one of {page}/commits/main"
    except errors.RepositoryNotFoundError:
        return f"{name} does not exist, or is private", f"check the name, or {login}"
    except errors.EntryNotFoundError:
        return f"{name} has no {file}", f"look for it at {page}/tree/{revision}"
    except Exception as error:  # whatever the HTTP library of the day raises
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return (
            f"the hub cannot be reached ({reason}), so access to {name} is not known",
            f"check the network, then {login}",
        )
    return None
