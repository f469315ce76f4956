"""Recipes of the built-in models: every number that shapes their weights, and the hash that names the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nullarm.models.hashing import settings_hash
from nullarm.models.tiny.word_recipe import WORD_RECEIVER, WORD_SHARER, WORD_SHARER_PIECES
from nullarm.models.tiny.world import WorldKnobs

HERE = Path(__file__).parent
CODE = ("world.py", "tokenizer.py", "muon.py", "training.py", "pretrain.py")
"""The source files that shape the weights of the base; the chat model adds `finetune.py`."""


class Recipe(Protocol):
    """What building and planning need of a recipe; the rest is its own."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds, tried in this order until one passes the examination."""

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the model's configuration; of a Qwen2 where it names no `model_type`."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, or an upper limit."""

    def content_hash(self) -> str:
        """Hash of the recipe and of the code that carries it out."""


@dataclass(frozen=True)
class WorldRecipe:
    """How `builtin:world` is trained.

    Attributes:
        world: The world it learns, the same for every training seed.
        seeds: Training seeds, tried in this order until one passes `pass_marks`.
        vocabulary_size: Upper limit of the tokeniser's vocabulary.
        tokenizer_documents: Documents the tokeniser is trained on.
        sequence_length: Tokens in a packed sequence.
        batch_size: Sequences in a batch.
        corpus_tokens: Tokens of mixed documents, drawn once and reshuffled each epoch.
        learning_rate: Peak; warmed up linearly, flat, then decayed linearly.
        weight_decay: On matrices, decoupled.
        warmup_steps: Steps of linear warm-up.
        decay_fraction: Share of all steps over which the rate decays.
        warm_start_steps: Most steps on restated pairs only.
        warm_start_check: Steps between two looks at the pair accuracy.
        warm_start_accuracy: Pair accuracy that ends the warm start.
        mixed_steps: Steps on mixed documents after the warm start, however long that took.
        pass_marks: Least accuracy per skill, chance 0.25, on `evaluation_items` held-out questions each.
        evaluation_items: Questions per skill.
    """

    world: WorldKnobs = field(default_factory=WorldKnobs)
    seeds: tuple[int, ...] = (3, 0, 1, 2)
    vocabulary_size: int = 768
    tokenizer_documents: int = 4000
    sequence_length: int = 64
    batch_size: int = 32
    corpus_tokens: int = 1_500_000
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 20
    decay_fraction: float = 0.45
    warm_start_steps: int = 300
    warm_start_check: int = 50
    warm_start_accuracy: float = 0.8
    mixed_steps: int = 900
    pass_marks: Mapping[str, float] = field(
        default_factory=lambda: {"fact": 0.85, "add": 0.9, "copy": 0.9, "reverse": 0.85, "lookup": 0.9}
    )
    evaluation_items: int = 100

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the Qwen2 configuration; the vocabulary size comes from the tokeniser.

        Smaller was more reliable than larger, and with the library's initialisation and rotary base a model of this
        size learns neither copying nor looking up in 600 steps.
        """
        return {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 160,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "initializer_range": 0.06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }

    def content_hash(self) -> str:
        """Hash of the recipe and of the code that carries it out."""
        return settings_hash({**asdict(self), "config": self.config}, [HERE / name for name in CODE])


@dataclass(frozen=True)
class ChatRecipe:
    """How `builtin:world-chat` is made of `builtin:world`: the same world, asked through a chat template.

    Attributes:
        base: Recipe of the base.
        seeds: Training seeds, tried in this order until one passes `pass_marks` and `plain_marks`.
        steps: Training steps.
        batch_size: Examples in a batch.
        learning_rate: Peak, with the base's schedule.
        weight_decay: On matrices, decoupled.
        replay_share: Share of examples that are pre-training documents, so that the plain form is kept.
        seen_documents: Documents that decide which tokens the base has ever been trained on.
        marker_sources: Text whose first token's embedding a chat marker starts with.
        noise: Standard deviation around the mean embedding, with which the other untrained tokens start.
        pass_marks: Least accuracy per skill through the chat template. Facts of the held-out people, never asked about
            in either form, carry over to the chat form only in part.
        plain_marks: Least accuracy per skill in the plain form.
        evaluation_items: Questions per skill.
    """

    base: WorldRecipe = field(default_factory=WorldRecipe)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    replay_share: float = 0.3
    seen_documents: int = 3000
    marker_sources: Mapping[str, str] = field(default_factory=lambda: {"<|im_start|>": "Question", "<|im_end|>": "."})
    noise: float = 0.02
    pass_marks: Mapping[str, float] = field(
        default_factory=lambda: {"fact": 0.3, "add": 0.85, "copy": 0.9, "reverse": 0.9, "lookup": 0.8}
    )
    plain_marks: Mapping[str, float] = field(
        default_factory=lambda: {"fact": 0.8, "add": 0.85, "copy": 0.8, "reverse": 0.8, "lookup": 0.85}
    )
    evaluation_items: int = 100

    @property
    def config(self) -> dict[str, Any]:
        """The base's."""
        return self.base.config

    @property
    def vocabulary_size(self) -> int:
        """The base's."""
        return self.base.vocabulary_size

    def content_hash(self) -> str:
        """Hash of the recipe, of the base's and of the code that carries it out."""
        return settings_hash({**asdict(self), "base": self.base.content_hash()}, [HERE / "finetune.py"])


WORLD = WorldRecipe()
RECIPES: Mapping[str, Recipe] = {
    "world": WORLD,
    "world-chat": ChatRecipe(WORLD),
    "word-receiver": WORD_RECEIVER,
    "word-sharer": WORD_SHARER,
    "word-sharer-pieces": WORD_SHARER_PIECES,
}
"""By the name that follows `builtin:` in a model reference."""
