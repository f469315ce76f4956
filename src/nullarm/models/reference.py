"""Names of models: `builtin:world`, `random:tiny-llama@3`, `org/name@revision`, a local directory, or a GGUF file.

Nothing here imports torch: a study is planned, and its cells named, before any model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nullarm.errors import ModelError, nearest
from nullarm.models.hashing import file_sha256, settings_hash
from nullarm.models.shapes import SHAPES
from nullarm.models.tiny.recipe import RECIPES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_GGUF = re.compile(rf"({HUB_ID.pattern})/([\w./ -]+\.gguf)")
KINDS = (
    "builtin:NAME, random:NAME[@SEED], a hub id org/name[@revision], a directory with a config.json, "
    "or a GGUF file: its path, or org/name/file.gguf[@revision] on the hub"
)
ADAPTER_CONFIG = "adapter_config.json"
CONTENT_FILES = (
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)
"""Files of a model directory that make the model what it is; readmes, logs and training states do not."""


@dataclass(frozen=True)
class Reference:
    """A model reference, taken apart.

    Attributes:
        kind: Where the model comes from.
        name: Name of a built-in or random model, hub id, or path of a GGUF file or of the directory of a model or of a
            PEFT adapter.
        revision: Hub revision (`main` when not given); empty for what is not on the hub.
        seed: Of random weights.
        file: Path of a GGUF file in the hub repository `name`; empty for one on this machine.
    """

    kind: Literal["builtin", "random", "hub", "directory", "adapter", "gguf"]
    name: str
    revision: str = ""
    seed: int = 0
    file: str = ""

    @property
    def on_hub(self) -> bool:
        """Whether it comes from the hub."""
        return bool(self.revision)


def parse(ref: str, *, adapter: bool = False) -> Reference:
    """Take a model reference apart.

    Args:
        ref: The reference.
        adapter: Whether a PEFT adapter will do, because a base to put it on is known.

    Raises:
        ModelError: It is of no known kind, names no known built-in, is a missing file, a directory without a model, or
            an adapter where a whole model is needed.
    """
    kind, colon, rest = ref.partition(":")
    if colon and kind == "builtin":
        return Reference("builtin", _known(ref, rest, RECIPES))
    if colon and kind == "random":
        name, _, seed = rest.partition("@")
        if seed and not seed.isdigit():
            raise ModelError("the seed of a random model is not a whole number", value=ref, valid="random:NAME@SEED")
        return Reference("random", _known(ref, name, SHAPES), seed=int(seed or 0))
    path = Path(ref).expanduser()
    if path.is_dir() or ref.startswith((".", "/", "~")):
        return _gguf(ref, path) if ref.endswith(".gguf") and not path.is_dir() else _directory(ref, path, adapter)
    name, _, revision = ref.partition("@")
    if name.endswith(".gguf"):
        return _gguf(ref, path)
    if HUB_ID.fullmatch(name):
        return Reference("hub", name, revision=revision or "main")
    hint = nearest(f"builtin:{ref}", [f"builtin:{name}" for name in RECIPES])
    raise ModelError(f"there is no such model{hint}", value=ref, valid=KINDS)


def content_id(ref: str, *, adapter: bool = False) -> str:
    """What names the content of a model: equal ids, equal weights (a hub id is believed).

    Built-in and random models are named by the hash of recipe and code, a directory by the SHA-256 of its weights,
    configuration and tokeniser wherever it lies, a GGUF file by its SHA-256, what is on the hub by id and revision. A
    PEFT adapter is named by its own files; its base is to be named beside it.

    Args:
        ref: The reference.
        adapter: Whether a PEFT adapter will do.

    Raises:
        ModelError: The reference is wrong, or the directory or file cannot be read.
    """
    reference = parse(ref, adapter=adapter)
    if reference.kind == "builtin":
        return f"builtin:{reference.name}@{RECIPES[reference.name].content_hash()}"
    if reference.kind == "random":
        return f"random:{reference.name}@{settings_hash([asdict(SHAPES[reference.name]), reference.seed])}"
    if reference.on_hub:
        file = f"/{reference.file}" if reference.file else ""
        return f"hub:{reference.name}{file}@{reference.revision}"
    if reference.kind == "gguf":
        return f"gguf:{_file_hash(Path(reference.name))}"
    return f"{reference.kind}:{_directory_hash(Path(reference.name))}"


def _known(ref: str, name: str, names: Collection[str]) -> str:
    if name not in names:
        kind = ref.partition(":")[0]
        raise ModelError(
            f"there is no {kind} model of this name{nearest(name, names)}",
            value=ref,
            valid=[f"{kind}:{n}" for n in sorted(names)],
        )
    return name


def _directory(ref: str, path: Path, adapter: bool) -> Reference:
    if not path.is_dir():
        raise ModelError("the model directory is missing", value=ref, valid=KINDS, next_command=f"ls {path.parent}")
    if (path / "config.json").is_file():
        return Reference("directory", str(path))
    if not (path / ADAPTER_CONFIG).is_file():
        raise ModelError("the model directory has no config.json", value=ref, valid=KINDS, next_command=f"ls {path}")
    if not adapter:
        raise ModelError(
            "the directory holds a PEFT adapter, and a whole model is needed here",
            value=ref,
            valid=KINDS,
            next_command=f"grep base_model_name_or_path {path / ADAPTER_CONFIG}",
        )
    return Reference("adapter", str(path))


def _gguf(ref: str, path: Path) -> Reference:
    """A file that is here goes before one on the hub."""
    if path.is_file():
        return Reference("gguf", str(path))
    name, _, revision = ref.partition("@")
    if (found := HUB_GGUF.fullmatch(name)) and not ref.startswith((".", "/", "~")):
        return Reference("gguf", found[1], revision=revision or "main", file=found[2])
    raise ModelError("the GGUF file is missing", value=ref, valid=KINDS, next_command=f"ls {path.parent}")


def _file_hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error}", value=str(path)) from error


def _directory_hash(path: Path) -> str:
    files = sorted({found for pattern in CONTENT_FILES for found in path.glob(pattern) if found.is_file()})
    try:
        return settings_hash({file.name: file_sha256(file) for file in files})
    except OSError as error:
        raise ModelError(f"the model directory cannot be read: {error}", value=str(path)) from error
