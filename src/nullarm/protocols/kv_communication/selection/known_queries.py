"""Models whose queries are known to be at hand. No torch: a plan refuses the others."""

from __future__ import annotations

from collections.abc import Mapping

LAST_BEFORE_ROTATION: Mapping[str, str] = {
    "LlamaForCausalLM": "q_proj",
    "MistralForCausalLM": "q_proj",
    "Qwen2ForCausalLM": "q_proj",
    "Qwen3ForCausalLM": "q_norm",
}
"""By class, the module of an attention block whose output is the queries, to be rotated next."""

QUERIES_KNOWN = frozenset(LAST_BEFORE_ROTATION)
"""The classes."""
