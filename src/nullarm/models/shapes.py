"""Configurations written out in code: models of real shape and tiny ones, all with random weights.

Speed and memory of a model follow from its shape, not from what its weights are; correctness tests want every supported
class in a size that takes milliseconds. Nothing here needs torch until a model is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Shape:
    """One configuration.

    Attributes:
        config: Its `config.json`, as far as it matters.
        hub_id: The model of this shape on the hub, or empty.
        tokenizer: `bytes`: any text, with the small world's merges; `words`: the words `w0`, `w1`, … and nothing else.
        scales: Factors on the random weights of modules, by the end of their name.
    """

    config: Mapping[str, Any]
    hub_id: str = ""
    tokenizer: Literal["bytes", "words"] = "bytes"
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Small enough to be written to the cache directory and read back like any other model."""
        return not self.hub_id


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _qwen2(
    name: str,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    *,
    positions: int,
    vocabulary: int = 151936,
    tied: bool = True,
    theta: float = 1000000.0,
) -> Shape:
    config = {
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "rope_parameters": _rope(theta),
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }
    return Shape(config, hub_id=f"Qwen/{name}")


def _qwen3(name: str, hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = True) -> Shape:
    config = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "rope_parameters": _rope(1000000.0),
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return Shape(config, hub_id=f"Qwen/{name}")


_TINY = {
    "vocab_size": 704,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "rope_parameters": _rope(10000.0),
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

_TINY_GEMMA = {**_TINY, "head_dim": 8, "tie_word_embeddings": True}

_ALTERNATING = {
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}

SHAPES: Mapping[str, Shape] = {
    "mistral-7b-v0.1": Shape(
        {
            "model_type": "mistral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": _rope(10000.0),
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        hub_id="mistralai/Mistral-7B-v0.1",
    ),
    "llama-3.1-8b": Shape(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": LLAMA3_ROPE,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        hub_id="meta-llama/Llama-3.1-8B",
    ),
    "llama-3.2-1b": Shape(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {**LLAMA3_ROPE, "factor": 32.0},
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        hub_id="meta-llama/Llama-3.2-1B",
    ),
    "qwen2.5-0.5b": _qwen2("Qwen2.5-0.5B", 896, 4864, 24, 14, 2, positions=32768),
    "qwen2.5-1.5b": _qwen2("Qwen2.5-1.5B", 1536, 8960, 28, 12, 2, positions=131072),
    "qwen2.5-3b": _qwen2("Qwen2.5-3B", 2048, 11008, 36, 16, 2, positions=32768),
    "qwen2.5-7b": _qwen2("Qwen2.5-7B", 3584, 18944, 28, 28, 4, positions=131072, vocabulary=152064, tied=False),
    "qwen2.5-math-1.5b": _qwen2("Qwen2.5-Math-1.5B", 1536, 8960, 28, 12, 2, positions=4096, theta=10000.0),
    "qwen2.5-math-7b": _qwen2(
        "Qwen2.5-Math-7B", 3584, 18944, 28, 28, 4, positions=4096, vocabulary=152064, tied=False, theta=10000.0
    ),
    "qwen3-0.6b": _qwen3("Qwen3-0.6B", 1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3("Qwen3-1.7B", 2048, 6144, 28, 16),
    "qwen3-4b": _qwen3("Qwen3-4B", 2560, 9728, 36, 32),
    "qwen3-8b": _qwen3("Qwen3-8B", 4096, 12288, 36, 32, tied=False),
    "tiny-llama": Shape({"model_type": "llama", **_TINY}),
    "tiny-mistral": Shape({"model_type": "mistral", **_TINY, "sliding_window": 16}),
    "tiny-qwen2": Shape({"model_type": "qwen2", **_TINY, "tie_word_embeddings": True}),
    "tiny-qwen3": Shape({"model_type": "qwen3", **_TINY, "head_dim": 8}),
    "tiny-gpt2": Shape(
        {
            "model_type": "gpt2",
            "vocab_size": 704,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 1024,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
    ),
    "tiny-gpt-neox": Shape(
        {
            "model_type": "gpt_neox",
            **{name: value for name, value in _TINY.items() if name != "num_key_value_heads"},
            "rope_parameters": {**_rope(10000.0), "partial_rotary_factor": 0.25},
        }
    ),
    "tiny-gemma": Shape({"model_type": "gemma", **_TINY_GEMMA}),
    "tiny-gemma2": Shape({"model_type": "gemma2", **_TINY_GEMMA, **_ALTERNATING, "final_logit_softcapping": 30.0}),
    "tiny-gemma3": Shape(
        {
            "model_type": "gemma3_text",
            **_TINY_GEMMA,
            **_ALTERNATING,
            "rope_parameters": {"sliding_attention": _rope(10000.0), "full_attention": _rope(1000000.0)},
        }
    ),
    # Every projection is 32 × 32: one stratum, so that ranks can be exchanged between any two of them. Embeddings that
    # outweigh what the blocks add keep each block's part in the output separable.
    "planted": Shape(
        {
            "model_type": "llama",
            **_TINY,
            "vocab_size": 64,
            "intermediate_size": 32,
            "num_key_value_heads": 4,
            "initializer_range": 0.25,
        },
        tokenizer="words",
        scales={"embed_tokens": 4.0, "lm_head": 2.0},
    ),
}
"""By the name that follows `random:` in a model reference."""


def shape_of_hub_id(hub_id: str) -> Shape | None:
    """The written-out shape of a hub model, so that its study can be planned on a machine without the model.

    A model's `-Instruct` has the shape of what it was tuned from, and so has a `-Base`.
    """
    wanted = hub_id.lower().removesuffix("-instruct").removesuffix("-base")
    return next((shape for shape in SHAPES.values() if not shape.tiny and shape.hub_id.lower() == wanted), None)
