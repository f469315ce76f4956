"""Read a PEFT LoRA adapter directory: which modules it updates, and their factors, a batch of equal shapes at a time.

ΔW = scale · B A with A `[r, in]` and B `[out, r]`. Nothing is held but the batch being worked on, so the memory an
audit needs does not grow with the adapter.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nullarm.errors import AdapterError
from nullarm.protocols.rank_mechanism.adapter_config import LoraSettings, read_settings
from nullarm.protocols.rank_mechanism.module_names import and_more, canonical_name, natural_key
from nullarm.protocols.rank_mechanism.tensor_file import read_safetensors, safetensors_shapes

SAFETENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

# X.lora_A.weight, X.lora_A.default.weight, X.lora_embedding_A, X.lora_magnitude_vector.default, X.lora_B.bias, …
_FACTOR_KEY = re.compile(
    r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?$"
)

Reader = Callable[[Sequence[str]], list[Tensor]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear module. `name` is the module's name in the base model."""

    name: str
    r: int
    alpha: float
    scale: float
    in_features: int
    out_features: int
    a_key: str
    b_key: str
    dora: bool = False

    @property
    def params(self) -> int:
        """Parameters of A and B together (DoRA's magnitudes not counted)."""
        return self.r * (self.in_features + self.out_features)


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, checked but not loaded.

    Attributes:
        directory: Where it lies.
        settings: Its configuration.
        modules: The linear modules it updates, in layer order.
        notes: What was left out of the audit and why, for people.
    """

    directory: Path
    settings: LoraSettings
    modules: tuple[LoraModule, ...]
    notes: tuple[str, ...]
    read: Reader = field(repr=False)

    def batches(self, max_elements: int) -> Iterator[tuple[list[LoraModule], Tensor, Tensor]]:
        """Modules of equal shape with their stacked factors: A `[batch, r, in]`, B `[batch, out, r]`, as stored.

        Args:
            max_elements: Bound on the elements of A and B in one batch; a batch holds at least one module.
        """
        groups: dict[tuple[int, int, int], list[LoraModule]] = defaultdict(list)
        for module in self.modules:
            groups[module.r, module.in_features, module.out_features].append(module)
        for group in groups.values():
            size = max(1, max_elements // group[0].params)
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                factors = self.read([key for module in batch for key in (module.a_key, module.b_key)])
                yield batch, torch.stack(factors[0::2]), torch.stack(factors[1::2])


def open_adapter(directory: Path | str, *, allow_pickle: bool = False) -> Adapter:
    """Check an adapter directory and list its modules without loading their weights.

    Args:
        directory: Holds `adapter_config.json` and `adapter_model.safetensors`.
        allow_pickle: Also accept `adapter_model.bin`, read with `weights_only=True`.

    Raises:
        AdapterError: If the directory, its configuration or its weights are missing, if a module lacks A or B, if
            ranks disagree, or if there is nothing to audit.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(
            f"adapter directory {directory} does not exist",
            valid="a directory with adapter_config.json and adapter_model.safetensors",
            next_command="nullarm audit DIR",
        )
    settings = read_settings(directory)
    shapes, read = _open_weights(directory, allow_pickle)
    parts, foreign = _parts(directory, shapes)
    skipped = _unauditable(settings, parts, shapes)
    modules = [
        _module(directory, settings, name, parts[name], shapes)
        for name in sorted(parts, key=natural_key)
        if name not in skipped
    ]
    if not modules:
        raise AdapterError(
            f"adapter {directory} has no linear LoRA module to audit",
            value=and_more(shapes) if shapes else "no tensors",
            valid="at least one pair X.lora_A.weight, X.lora_B.weight",
            next_command="save the adapter again with save_pretrained",
        )
    return Adapter(directory, settings, tuple(modules), tuple(_notes(settings, skipped, foreign)), read)


def _open_weights(directory: Path, allow_pickle: bool) -> tuple[Shapes, Reader]:
    path = directory / SAFETENSORS_FILE
    if path.is_file():
        return safetensors_shapes(path, AdapterError), lambda keys: read_safetensors(path, keys)
    pickled = directory / PICKLE_FILE
    if not pickled.is_file():
        raise AdapterError(
            f"adapter {directory} has no weights",
            valid=f"{SAFETENSORS_FILE} (or {PICKLE_FILE} with --allow-pickle)",
            next_command="save the adapter again with save_pretrained",
        )
    if not allow_pickle:
        raise AdapterError(
            f"adapter {directory} is stored as a pickle, which is not read unless asked for",
            value=PICKLE_FILE,
            valid=SAFETENSORS_FILE,
            next_command=f"nullarm audit {directory} --allow-pickle",
        )
    return _load_pickle(pickled)


def _load_pickle(path: Path) -> tuple[Shapes, Reader]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError) as cause:
        raise AdapterError(
            f"{path} is not a readable state dict: {str(cause).splitlines()[0]}",
            valid="a dictionary of tensors, loadable with weights_only=True",
            next_command=f"convert it to {SAFETENSORS_FILE}",
        ) from cause
    return shapes, lambda keys: [tensors[key] for key in keys]


def _parts(directory: Path, keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{module: {part: key}} of the LoRA tensors, and the keys of all others."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    foreign: list[str] = []
    for key in keys:
        match = _FACTOR_KEY.match(key)
        if match is None or match["leaf"] == "bias":
            foreign.append(key)
            continue
        of_module = parts[canonical_name(match["module"])]
        if match["part"] in of_module:
            raise AdapterError(
                f"adapter {directory}: two tensors are lora_{match['part']} of one module",
                value=f"{of_module[match['part']]}, {key}",
                valid="one adapter per directory",
                next_command="save each adapter to its own directory with save_pretrained(selected_adapters=[...])",
            )
        of_module[match["part"]] = key
    return parts, foreign


def _unauditable(settings: LoraSettings, parts: dict[str, dict[str, str]], shapes: Shapes) -> dict[str, str]:
    """{module: why it is left out} for modules whose update is not one (out × in) matrix."""
    reasons: dict[str, str] = {}
    for name, of_module in parts.items():
        if any(part.startswith("embedding") for part in of_module):
            reasons[name] = "embedding"
        elif any(len(shapes[of_module[part]]) > 2 for part in ("A", "B") if part in of_module):
            reasons[name] = "convolution"
        elif settings.targets_parameters_of(name):
            reasons[name] = "bare parameters (target_parameters)"
    return reasons


def _module(
    directory: Path, settings: LoraSettings, name: str, of_module: dict[str, str], shapes: Shapes
) -> LoraModule:
    for part, other in (("A", "B"), ("B", "A")):
        if part not in of_module:
            raise AdapterError(
                f"adapter {directory}: module {name} has no lora_{part}",
                value=of_module.get(other, sorted(of_module)),
                valid="both lora_A and lora_B for every module",
                next_command="save the adapter again with save_pretrained",
            )
    a_shape, b_shape = shapes[of_module["A"]], shapes[of_module["B"]]
    rank = settings.rank_of(name)
    _check_shapes(directory, name, a_shape, b_shape, rank)
    return LoraModule(
        name=name,
        r=rank,
        alpha=settings.alpha_of(name),
        scale=settings.scale_of(name),
        in_features=a_shape[1],
        out_features=b_shape[0],
        a_key=of_module["A"],
        b_key=of_module["B"],
        dora=settings.dora or "magnitude_vector" in of_module,
    )


def _check_shapes(directory: Path, name: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...], rank: int) -> None:
    found = f"A {a_shape}, B {b_shape}"
    if len(a_shape) != 2 or len(b_shape) != 2 or 0 in a_shape + b_shape:
        raise AdapterError(
            f"adapter {directory}: module {name} has factors that are no matrices (shards that were not gathered?)",
            value=found,
            valid="A (r, in) and B (out, r)",
            next_command="gather the shards, then save the adapter again with save_pretrained",
        )
    if a_shape[0] != b_shape[1]:
        raise AdapterError(
            f"adapter {directory}: the factors of module {name} disagree on the rank",
            value=found,
            valid="A (r, in) and B (out, r) with one r",
            next_command="save the adapter again with save_pretrained",
        )
    if a_shape[0] != rank:
        raise AdapterError(
            f"adapter {directory}: module {name} has rank {a_shape[0]} in its tensors, {rank} in adapter_config.json",
            value=found,
            valid=f"r or rank_pattern giving {a_shape[0]}, on which the scale depends",
            next_command=f'set "rank_pattern": {{"{name}": {a_shape[0]}}} in adapter_config.json',
        )


def _notes(settings: LoraSettings, skipped: dict[str, str], foreign: list[str]) -> Iterator[str]:
    if settings.dora:
        yield "DoRA: spectra are those of the direction update scale · BA, before normalisation and magnitudes"
    for reason in sorted(set(skipped.values())):
        names = sorted((name for name, why in skipped.items() if why == reason), key=natural_key)
        yield f"not audited, {reason}: {and_more(names)}"
    if foreign:
        yield f"ignored, no LoRA factors (modules_to_save, biases): {and_more(sorted(foreign))}"
