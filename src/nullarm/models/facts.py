"""Shapes and sizes of models for planning, from configuration and file headers alone: no torch, no weights read."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.families import FAMILIES, Family, ShapeFacts
from nullarm.models.gguf import configuration, read_header
from nullarm.models.gguf.configuration import ROPE_FACTORS
from nullarm.models.reference import Reference, parse
from nullarm.models.shapes import SHAPES, shape_of_hub_id
from nullarm.models.tiny.build import ready_directory
from nullarm.models.tiny.recipe import RECIPES


def shape_facts(ref: str) -> ShapeFacts:
    """Sizes of a model, from its `config.json`, its written-out configuration or the header of its GGUF file.

    Raises:
        ModelError: The reference is wrong, or the configuration is not at hand or not of a decoder-only transformer.
    """
    try:
        config = _common_names(_config(parse(ref), ref))
        model_type, heads, hidden = config["model_type"], config["num_attention_heads"], config["hidden_size"]
        tied = model_type in FAMILIES and FAMILIES[model_type].ties_embeddings
        return ShapeFacts(
            model_type=model_type,
            layers=config["num_hidden_layers"],
            hidden_size=hidden,
            intermediate_size=config["intermediate_size"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary_size=config["vocab_size"],
            tied_embeddings=bool(config.get("tie_word_embeddings", tied)),
            learned_positions=config.get("n_positions", 0),
        )
    except KeyError as error:
        raise ModelError(f"config.json lacks {error}", value=ref, valid=f"model types {', '.join(FAMILIES)}") from error


def architecture(ref: str) -> str | None:
    """Name of the model's class as its `config.json` has it; None where that is not at hand, or says nothing."""
    reference = parse(ref, adapter=True)
    if reference.kind == "adapter":
        return None
    try:
        named = _config(reference, ref).get("architectures")
    except ModelError:
        return None
    return str(named[0]) if isinstance(named, list) and named else None


def parameter_count(ref: str) -> int:
    """Number of parameters, tied ones once; exact where weights are at hand or the family is known.

    Raises:
        ModelError: Neither weights nor the configuration of a known family are at hand.
    """
    reference = parse(ref)
    if reference.kind == "gguf":
        tensors = read_header(gguf_file(reference)).tensors
        return sum(prod(tensor.shape) for name, tensor in tensors.items() if name != ROPE_FACTORS)
    directory = _directory(reference)
    if directory is not None and (shapes := tensor_shapes(directory)):
        return sum(prod(shape) for shape in shapes.values())
    facts = shape_facts(ref)
    return _family(facts, ref).parameter_count(facts)


def context_length(ref: str) -> int | None:
    """Positions that a model was made for; None where its configuration does not say.

    Raises:
        ModelError: Its configuration is not at hand.
    """
    config = _config(parse(ref), ref)
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return None if found is None else int(found)


def linear_shapes(ref: str) -> dict[str, tuple[int, int]]:
    """`(in, out)` of every projection inside the blocks, by module name, such as `model.layers.0.mlp.up_proj`.

    Raises:
        ModelError: The model is not of a known family, or its configuration is not at hand.
    """
    facts = shape_facts(ref)
    return _family(facts, ref).linear_shapes(facts)


def weights_directory(ref: str) -> Path | None:
    """Directory with the model's safetensors on this machine; None where they are not at hand.

    They are not for random weights, hub models that have not been downloaded yet, and GGUF files.
    """
    reference = parse(ref)
    if reference.kind != "hub":
        return _directory(reference)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference.name, "config.json", revision=reference.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def gguf_file(reference: Reference) -> Path:
    """Path of a GGUF file on this machine.

    Raises:
        ModelError: It is on the hub, and has not been downloaded.
    """
    if not reference.on_hub:
        return Path(reference.name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference.name, reference.file, revision=reference.revision)
    if isinstance(cached, str):
        return Path(cached)
    raise ModelError(
        "the GGUF file is not on this machine yet",
        value=f"{reference.name}/{reference.file}",
        valid="a downloaded file",
        next_command=f"hf download {reference.name} {reference.file} --revision {reference.revision}",
    )


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a directory's safetensors files, from their headers; empty when there are none.

    Raises:
        ModelError: A file is cut short or is no safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
        except (OSError, struct.error, ValueError, MemoryError, OverflowError) as error:
            raise ModelError("the file is not a readable safetensors file", value=str(path)) from error
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def _family(facts: ShapeFacts, ref: str) -> Family:
    if facts.model_type not in FAMILIES:
        raise ModelError(f"the shapes of {ref} are not known in advance", value=facts.model_type, valid=FAMILIES)
    return FAMILIES[facts.model_type]


def _common_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """GPT-2 has names of its own for what all others call the same."""
    if config["model_type"] != "gpt2":
        return config
    return {
        **config,
        "hidden_size": config["n_embd"],
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
    }


def _directory(reference: Reference) -> Path | None:
    if reference.kind == "directory":
        return Path(reference.name)
    return ready_directory(reference.name) if reference.kind == "builtin" else None


def _config(reference: Reference, ref: str) -> Mapping[str, Any]:
    if reference.kind == "random":
        return SHAPES[reference.name].config
    if reference.kind == "gguf":
        return configuration(read_header(gguf_file(reference)))
    if directory := _directory(reference):
        return _read(directory / "config.json")
    if reference.kind == "builtin":
        recipe = RECIPES[reference.name]
        return {"model_type": "qwen2", "vocab_size": recipe.vocabulary_size, **recipe.config}
    return _hub_config(reference, ref)


def _hub_config(reference: Reference, ref: str) -> Mapping[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference.name, "config.json", revision=reference.revision)
    if isinstance(cached, str):
        return _read(Path(cached))
    if shape := shape_of_hub_id(reference.name):
        return shape.config
    raise ModelError(
        "the configuration of this hub model is not on this machine",
        value=ref,
        valid="a downloaded model, or one whose shape nullarm knows",
        next_command=f"hf download {reference.name} config.json --revision {reference.revision}",
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"config.json cannot be read: {error}", value=str(path)) from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not a mapping", value=str(path))
    return config
