"""Norms of the base weights an adapter changes, found by name and remembered by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.protocols.rank_mechanism.adapter import LoraModule
from nullarm.protocols.rank_mechanism.module_names import layer_path
from nullarm.protocols.rank_mechanism.spectral_norm import TOLERANCE, spectral_norm
from nullarm.protocols.rank_mechanism.tensor_file import read_safetensors, safetensors_shapes

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Anything else is a quantisation format, whose numbers mean nothing without their scales.
_PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class BaseNorms:
    """‖W‖₂ (to `TOLERANCE`) and ‖W‖_F of one base weight."""

    spectral: float
    frobenius: float


@dataclass(frozen=True)
class _BaseTensor:
    key: str
    path: Path
    shape: tuple[int, ...]


def base_norms(
    directory: Path, modules: Iterable[LoraModule], *, fan_in_fan_out: bool = False, cache: Path | None = None
) -> tuple[dict[str, BaseNorms], dict[str, str]]:
    """Norms of the base weight under each module.

    Args:
        directory: A checkpoint directory: `model.safetensors` or a sharded index with its shards.
        modules: The adapted modules.
        fan_in_fan_out: Weights are stored (in, out).
        cache: Where norms are kept between runs, named by the SHA-256 of the tensor; None keeps nothing.

    Returns:
        `{module: norms}`, and `{module: why not}` for modules whose weight is not there or is ambiguous.

    Raises:
        ModelError: If the directory holds no safetensors checkpoint, or a weight is not finite.
    """
    tensors = _index(directory)
    found: dict[str, BaseNorms] = {}
    missing: dict[str, str] = {}
    for module in modules:
        shape = (module.out_features, module.in_features)
        match = _match(module.name, shape[::-1] if fan_in_fan_out else shape, tensors)
        norms = match if isinstance(match, str) else _norms(match, cache)
        if isinstance(norms, str):
            missing[module.name] = norms
        else:
            found[module.name] = norms
    return found, missing


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/nullarm/base-norms` (`~/.cache` where that is unset)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nullarm" / "base-norms"


def _index(directory: Path) -> dict[str, _BaseTensor]:
    """{name without `.weight`: tensor} of every matrix of the checkpoint."""
    tensors = {}
    for path in _files(directory):
        for key, shape in safetensors_shapes(path, ModelError).items():
            if key.endswith(".weight") and len(shape) == 2:
                tensors[key.removesuffix(".weight")] = _BaseTensor(key, path, shape)
    return tensors


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if not index.is_file():
        if (directory / SINGLE_FILE).is_file():
            return [directory / SINGLE_FILE]
        raise ModelError(
            f"base model directory {directory} has no safetensors weights",
            value=sorted(p.name for p in directory.iterdir())[:5] if directory.is_dir() else "no such directory",
            valid=f"{SINGLE_FILE}, or {INDEX_FILE} with its shards",
            next_command="nullarm audit DIR --base BASE_DIR",
        )
    try:
        shards = sorted(
            {directory / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (ValueError, KeyError, AttributeError, TypeError) as cause:
        raise ModelError(
            f"{index} is not an index of shards",
            valid='{"weight_map": {tensor: file}}',
            next_command="download or copy the checkpoint again",
        ) from cause
    for shard in shards:
        if not shard.is_file():
            raise ModelError(
                f"base model directory {directory} lacks a shard that its index names",
                value=shard.name,
                valid=f"all {len(shards)} files named in {INDEX_FILE}",
                next_command="download or copy the checkpoint again",
            )
    return shards


def _match(module: str, shape: tuple[int, ...], tensors: dict[str, _BaseTensor]) -> _BaseTensor | str:
    """The base tensor under a module, or the reason why there is none.

    The same weight may be `model.layers.0.q_proj` in one file and `layers.0.q_proj` in another, according to which
    class saved it. Without an equal name the longest common tail decides, if it reaches out to the layer and is unique.
    """
    if module in tensors and tensors[module].shape == shape:
        return tensors[module]
    lengths = {name: _common_tail(module, name) for name, tensor in tensors.items() if tensor.shape == shape}
    longest = max(lengths.values(), default=0)
    nearest = [name for name, length in lengths.items() if length == longest]
    layer = layer_path(module)
    parts = module.count(".") + 1
    # `layers.0.self_attn.q_proj`: the container of layers, the number, and all that follows; without a layer, all
    needed = parts if layer is None else parts - layer.count(".") + 1
    meant = [name for name in nearest if longest >= min(needed, name.count(".") + 1)]
    if len(meant) == 1:
        return tensors[meant[0]]
    return "several base weights could be meant" if meant else "no base weight of that name and shape"


def _common_tail(a: str, b: str) -> int:
    length = 0
    for left, right in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if left != right:
            break
        length += 1
    return length


def _norms(tensor: _BaseTensor, cache: Path | None) -> BaseNorms | str:
    (weight,) = read_safetensors(tensor.path, [tensor.key])
    if weight.dtype not in _PLAIN_TYPES:
        return f"base weight is quantised ({weight.dtype})"
    entry = cache / f"{_content_hash(weight)}.json" if cache is not None else None
    norms = _recall(entry)
    if norms is None:
        norms = BaseNorms(spectral_norm(_finite(weight, tensor)), _frobenius(weight))
        _remember(entry, norms)
    return norms


def _frobenius(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))


def _finite(weight: Tensor, tensor: _BaseTensor) -> Tensor:
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ModelError(
            f"base weight {tensor.key} in {tensor.path} holds values that are not finite",
            value=f"{bad} of {weight.numel()}",
            valid="finite weights",
            next_command="download or copy the checkpoint again",
        )
    return weight


def _content_hash(weight: Tensor) -> str:
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)} {TOLERANCE} ".encode())
    digest.update(weight.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _recall(entry: Path | None) -> BaseNorms | None:
    if entry is None:
        return None
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        return BaseNorms(spectral=float(known["spectral"]), frobenius=float(known["frobenius"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remember(entry: Path | None, norms: BaseNorms) -> None:
    if entry is None:
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(norms)), encoding="utf-8")
        temporary.replace(entry)
    except OSError:
        return  # a cache that cannot be written costs time, not correctness
