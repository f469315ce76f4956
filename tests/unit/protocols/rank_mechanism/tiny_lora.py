"""A random Qwen2 of two layers, arms built on it, and data to train them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nullarm.protocols.rank_mechanism.lora import build_lora, target_modules
from nullarm.protocols.rank_mechanism.ranks import ModuleShape
from nullarm.training.batches import Batches

if TYPE_CHECKING:
    from peft import PeftModel

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 60


@dataclass(frozen=True)
class Item:
    ids: list[int]
    labels: list[int]


def tiny_qwen(layers: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).to(dtype)


def tiny_classifier(head_seed: int = 1) -> Any:
    """Three classes on the layers of `tiny_qwen`; only the head depends on the seed."""
    from transformers import Qwen2ForSequenceClassification

    base = tiny_qwen()
    base.config.num_labels, base.config.pad_token_id = 3, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head_seed)
        model = Qwen2ForSequenceClassification(base.config)
    model.model.load_state_dict(base.model.state_dict())
    return model


def tiny_modules(layers: int = 2) -> list[ModuleShape]:
    return target_modules(tiny_qwen(layers), PROJECTIONS)


def varied_ranks(modules: list[ModuleShape], ranks: tuple[int, ...] = (1, 4, 2, 8, 3)) -> dict[str, int]:
    return {module.name: ranks[i % len(ranks)] for i, module in enumerate(modules)}


def lora(ranks: dict[str, int], model: Any = None, **changes: Any) -> PeftModel:
    knobs: dict[str, Any] = {
        "alpha_rule": "fixed",
        "alpha": 16,
        "dropout": 0.0,
        "seed": 1,
        "init_seed_rank": 16,
        "task_type": "CAUSAL_LM",
    }
    return build_lora(model or tiny_qwen(), ranks=ranks, **{**knobs, **changes})


def tiny_batches(batch_size: int = 8, count: int = 64) -> Batches:
    rng = np.random.default_rng(3)
    items = []
    for _ in range(count):
        ids = rng.integers(2, VOCABULARY, rng.integers(8, 16)).tolist()
        items.append(Item(ids, [-100] * 3 + [(2 * t) % VOCABULARY for t in ids[3:]]))
    return Batches(items, batch_size=batch_size, seed=0, pad_id=0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(2, 20)[None]).logits
    return found
