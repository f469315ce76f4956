"""The configuration of a GGUF file's model, as its `config.json` would have it."""

from __future__ import annotations

import math
import struct
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.gguf.header import Header

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Classes of transformers by llama.cpp's name, which is also their `model_type`. `llama` is Mistral as well."""
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotations' frequencies, [head_dim / 2]: how llama.cpp writes the scaling of Llama 3.1 and later."""
_F32 = 0


def configuration(header: Header) -> dict[str, Any]:
    """The file's `config.json`.

    Raises:
        ModelError: The architecture is not one of `ARCHITECTURES`, a value is missing, or the rotary positions are
            scaled in a way that is not known.
    """
    name = header.architecture
    if name not in ARCHITECTURES or header.metadata.get(f"{name}.expert_count"):
        experts = " with experts" if name in ARCHITECTURES else ""
        raise ModelError(
            f"GGUF files of this architecture{experts} cannot be read: {header.path}",
            value=name,
            valid=[f"dense {known}" for known in ARCHITECTURES],
            next_command="name the directory or the hub id of the model that the file was made from",
        )
    width, heads = _number(header, "embedding_length"), _number(header, "attention.head_count")
    head_dim = _number(header, "attention.key_length", width // heads)
    return {
        "model_type": name,
        "architectures": [ARCHITECTURES[name]],
        "vocab_size": _vocabulary_size(header),
        "hidden_size": width,
        "intermediate_size": _number(header, "feed_forward_length"),
        "num_hidden_layers": _number(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(header, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _number(header, "context_length"),
        "rms_norm_eps": _number(header, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(header, head_dim),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        **{
            ours: header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
        },
    }


def _number(header: Header, key: str, default: float | None = None) -> Any:
    value = header.metadata.get(f"{header.architecture}.{key}", default)
    if not isinstance(value, int | float) or value <= 0:
        raise ModelError(
            f"the GGUF file {header.path} has no {header.architecture}.{key} that is one number",
            value=value,
            valid="a number above 0",
        )
    return value


def _vocabulary_size(header: Header) -> int:
    if "token_embd.weight" not in header.tensors:
        raise ModelError("the GGUF file has no token_embd.weight", value=str(header.path), valid="a whole model")
    return header.tensors["token_embd.weight"].shape[0]


def _rope(header: Header, head_dim: int) -> dict[str, Any]:
    name = header.architecture
    base = {"rope_theta": _number(header, "rope.freq_base", 10000.0)}
    if ROPE_FACTORS in header.tensors:
        return _llama3(header, head_dim, base)
    kind = header.metadata.get(f"{name}.rope.scaling.type", "none")
    factor = _number(header, "rope.scaling.factor", 1.0)
    if kind == "none":
        return {"rope_type": "default", **base}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor, **base}
    if kind == "yarn":
        original = _number(header, "rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **base}
    raise _unknown_scaling(header, kind)


def _llama3(header: Header, head_dim: int, base: dict[str, float]) -> dict[str, Any]:
    """Llama 3's scaling; its constants are the same in all of its versions, except the factor."""
    found = _factors(header)
    scaling = {"factor": max(found), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    expected = [
        _llama3_divisor(2 * math.pi * base["rope_theta"] ** (2 * i / head_dim), scaling["factor"])
        for i in range(head_dim // 2)
    ]
    if len(found) != len(expected) or not all(map(_close, found, expected)):
        raise _unknown_scaling(header, f"{ROPE_FACTORS} up to {max(found):g}")
    return {"rope_type": "llama3", "original_max_position_embeddings": _LLAMA3_CONTEXT, **scaling, **base}


_LLAMA3_CONTEXT = 8192


def _llama3_divisor(wavelength: float, factor: float) -> float:
    """What a frequency is divided by: nothing up to a quarter of the context, `factor` beyond it, smooth between."""
    turns = _LLAMA3_CONTEXT / wavelength
    share = min(max((turns - 1) / (4 - 1), 0.0), 1.0)
    return 1 / ((1 - share) / factor + share)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def _factors(header: Header) -> tuple[float, ...]:
    tensor = header.tensors[ROPE_FACTORS]
    if tensor.ggml_type != _F32:
        raise _unknown_scaling(header, f"{ROPE_FACTORS} of type {tensor.ggml_type}")
    with header.path.open("rb") as file:
        file.seek(tensor.start)
        return struct.unpack(f"<{tensor.shape[0]}f", file.read(tensor.nbytes))


def _unknown_scaling(header: Header, value: str) -> ModelError:
    return ModelError(
        f"the rotary positions of {header.path} are scaled in a way that is not known here",
        value=value,
        valid="none, linear, yarn, or the factors of Llama 3",
        next_command="name the directory or the hub id of the model that the file was made from",
    )
