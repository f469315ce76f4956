"""GGUF files as llama.cpp's converter writes them, of small Llama, Qwen 2 and Qwen 3 models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any = None,
    *,
    kind: str = "F32",
    permute: bool = True,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    leave_out: str = "",
) -> Path:
    """Write a model and its byte-level tokeniser.

    Args:
        path: Where to.
        model: Of transformers.
        tokenizer: The small world's, if any.
        kind: Type of the matrices; vectors are F32.
        permute: Whether Llama's query and key rows are interleaved, as they must be.
        extra: Further tensors.
        settings: Further metadata, or other ones: text, whole numbers or numbers.
        leave_out: Name of a tensor that is missing in the file.
    """
    config = model.config
    writer = GGUFWriter(path, config.model_type)
    _write_settings(writer, config, settings or {})
    if tokenizer is not None:
        write_tokenizer(writer, tokenizer, padded=config.vocab_size - len(tokenizer))
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        ours = _name(name)
        if ours != leave_out and not (tied and name == "lm_head.weight"):
            _add(writer, ours, exported(name, weight, config, permute), kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    return finish(writer, path)


def finish(writer: GGUFWriter, path: Path) -> Path:
    """Write everything and close."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def exported(name: str, weight: torch.Tensor, config: Any, permute: bool) -> np.ndarray[Any, Any]:
    """A weight as the file has it, before it is quantised."""
    values = weight.float().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or config.model_type != "llama" or not permute:
        return values
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, inside = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inside]}.{kind}"


def _add(writer: GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: str) -> None:
    chosen = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
    writer.add_tensor(name, quants.quantize(np.ascontiguousarray(values), chosen), raw_dtype=chosen)


def _write_settings(writer: GGUFWriter, config: Any, settings: Mapping[str, Any]) -> None:
    name = config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known: dict[str, Any] = {
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.key_length": head_dim,
        f"{name}.attention.value_length": head_dim,
        f"{name}.rope.dimension_count": head_dim,
        f"{name}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    for key, value in {**known, **settings}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)


def write_tokenizer(
    writer: GGUFWriter,
    tokenizer: Any,
    pre: str = "smollm",
    *,
    bos: int | None = None,
    add_bos: bool | None = False,
    add_eos: bool = False,
    padded: int = 0,
) -> None:
    """A byte-level tokeniser whose special tokens are its added ones, with `padded` unused tokens behind them."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = set(tokenizer.get_added_vocab())
    kinds = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in range(padded))])
    writer.add_token_types([*kinds, *[TokenType.UNUSED] * padded])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_eos_token(add_eos)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
