"""Where a fuser that was trained elsewhere lies: a directory, or a folder of a hub repository. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nullarm.errors import ModelError
from nullarm.models.hashing import file_sha256, settings_hash

HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)/(?P<folder>[^@]+?)(@(?P<revision>[\w.-]+))?")
KINDS = "a directory with projector_config.json, or hf:ORG/REPOSITORY/FOLDER[@REVISION]"
CONFIG = "projector_config.json"


@dataclass(frozen=True)
class HubFuser:
    """A folder of a hub repository.

    Attributes:
        repository: `org/name`.
        folder: Path of the folder in it.
        revision: Hub revision.
    """

    repository: str
    folder: str
    revision: str


def fuser_content_id(ref: str) -> str:
    """What names the content of a fuser: hashes of its files, or repository, folder and revision, which are believed.

    Raises:
        ModelError: There is no fuser in this place.
    """
    place = find(ref)
    if isinstance(place, HubFuser):
        return f"hub:{place.repository}/{place.folder}@{place.revision}"
    files = sorted(path for path in place.glob("projector_*") if path.suffix in (".json", ".pt", ".safetensors"))
    return f"fuser:{settings_hash({path.name: file_sha256(path) for path in files})}"


def find(ref: str) -> Path | HubFuser:
    """The place that a reference names.

    Raises:
        ModelError: It names none.
    """
    if ref.startswith("hf:"):
        if found := HUB.fullmatch(ref):
            return HubFuser(found["repository"], found["folder"].rstrip("/"), found["revision"] or "main")
        raise ModelError("the fuser's reference is malformed", value=ref, valid=KINDS)
    path = Path(ref).expanduser()
    if not (path / CONFIG).is_file():
        raise ModelError(f"the fuser's directory has no {CONFIG}", value=ref, valid=KINDS, next_command=f"ls {path}")
    return path


def local_directory(ref: str) -> Path:
    """Directory with the fuser's files, downloaded where it has to be.

    Raises:
        ModelError: There is no fuser in this place, or the hub cannot be reached.
    """
    place = find(ref)
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download

    pattern = f"{place.folder}/*"
    try:
        root = snapshot_download(place.repository, revision=place.revision, allow_patterns=pattern)
    except Exception as error:  # the hub's own errors, and the network's
        raise ModelError(
            f"the fuser is neither cached nor reachable: {' '.join(str(error).split())[:200]}",
            value=ref,
            next_command=f"hf download {place.repository} --revision {place.revision} --include '{pattern}'",
        ) from error
    return Path(root) / place.folder
