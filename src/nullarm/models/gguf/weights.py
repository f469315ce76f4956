"""Weights of a GGUF file, dequantised, under the names and in the order of rows that transformers expects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize

from nullarm.errors import ModelError
from nullarm.models.gguf.configuration import ROPE_FACTORS
from nullarm.models.gguf.header import Header, TensorInfo

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")
_PERMUTED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def state_dict(header: Header, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights by the names of `config`'s class, in memory; one tensor at a time is held in fp32 beside them.

    Raises:
        ModelError: A tensor has a name that is not known, or a type that cannot be dequantised.
    """
    data = np.memmap(header.path, mode="r", dtype=np.uint8)
    weights = {}
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS:
            continue  # part of the configuration
        values = torch.from_numpy(_values(data, header, name, tensor))
        heads = _heads(name, config)
        values = values if heads is None else unpermuted(values, heads)
        weights[_name(name, header)] = values.to(dtype)
    return weights


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection, [out, in] or [out], in transformers' order.

    Llama.cpp rotates neighbouring rows of a head, transformers the two halves, so that the files hold each head's rows
    interleaved: 0, d/2, 1, d/2 + 1, ….
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Number of heads whose rows are interleaved; None for a tensor that is as transformers has it."""
    found = _BLOCK.match(name)
    if config["model_type"] != "llama" or found is None or found[2] not in _PERMUTED:
        return None
    return int(config[_PERMUTED[found[2]]])


def _name(name: str, header: Header) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    if (found := _BLOCK.fullmatch(stem)) and found[2] in _IN_BLOCK:
        return f"model.layers.{found[1]}.{_IN_BLOCK[found[2]]}.{kind}"
    raise ModelError(
        f"the GGUF file {header.path} has a tensor that a {header.architecture} model has no place for",
        value=name,
        valid=[*_OUTSIDE, *(f"blk.N.{inside}" for inside in _IN_BLOCK)],
    )


def _values(data: np.ndarray, header: Header, name: str, tensor: TensorInfo) -> np.ndarray:
    kind = GGMLQuantizationType(tensor.ggml_type)
    raw = data[tensor.start : tensor.start + tensor.nbytes]
    try:
        values = dequantize(raw.reshape(*tensor.shape[:-1], -1), kind).reshape(tensor.shape)
    except NotImplementedError as error:
        raise ModelError(
            f"tensor {name} of {header.path} is of a type that cannot be dequantised", value=kind.name,
            valid="F32, F16, BF16, Q8_0, Q4_K and most others",
        ) from error  # fmt: skip
    return np.require(values, requirements=["WRITEABLE", "ENSUREARRAY"])
