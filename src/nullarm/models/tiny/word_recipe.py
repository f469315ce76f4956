"""Recipes of the word pair: two sharers that know the class of every word, and a receiver that knows half of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullarm.models.hashing import settings_hash
from nullarm.models.tiny.word_tokenizer import vocabulary_size

HERE = Path(__file__).parent
CODE = ("words.py", "word_tokenizer.py", "word_documents.py", "word_pair.py", "muon.py", "training.py")
"""The source files that shape the weights."""

SHARED_CONFIG: Mapping[str, Any] = {
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SHARER_SHAPE: Mapping[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
}
RECEIVER_SHAPE: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "intermediate_size": 128,
}


@dataclass(frozen=True)
class WordRecipe:
    """How a model of the word pair is trained.

    Attributes:
        shape: Architecture and sizes; what all share is `SHARED_CONFIG`.
        known_quarters: Quarters of the lexicon whose classes it is taught.
        pass_marks: Least accuracy per form of `nullarm.models.tiny.word_pair.examine_words`.
        steps: Training steps, those of the warm start among them.
        seeds: Training seeds, tried in this order until one passes `pass_marks`.
        pieces: Whether its tokeniser splits words in two.
        warm_start_steps: Steps on bare `{word} is {class}` first. Without them two pieces are not put together at all.
        background_share: Share of documents that ask for the class itself.
        told_share: Share of the others whose class is told, at random, before the question.
        scan_share: Share of the rest, told or not, that stop at the right option instead of asking for its letter
            (`nullarm.models.tiny.word_documents.scan`).
        outlier: Constant in the last key and value channel of every head, a bias that is not trained; 0 for none. The
            keys of published Qwen2.5 models have such offsets, and quantisers with one scale per head suffer by them;
            without them a cache of this size loses little in any codec.
        batch_size: Documents in a batch.
        learning_rate: Peak.
        weight_decay: On matrices, decoupled.
        warmup_steps: Steps of linear warm-up.
        decay_fraction: Share of all steps over which the rate decays.
        evaluation_items: Questions per form.
    """

    shape: Mapping[str, Any]
    known_quarters: tuple[int, ...]
    pass_marks: Mapping[str, float]
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    pieces: bool = False
    warm_start_steps: int = 0
    background_share: float = 0.0
    told_share: float = 0.0
    scan_share: float = 0.4
    outlier: float = 0.0
    batch_size: int = 64
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    decay_fraction: float = 0.6
    evaluation_items: int = 300

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the model's configuration; the vocabulary size stands apart."""
        return {**self.shape, **SHARED_CONFIG}

    @property
    def vocabulary_size(self) -> int:
        """Tokens of its tokeniser."""
        return vocabulary_size(pieces=self.pieces)

    def content_hash(self) -> str:
        """Hash of the recipe and of the code that carries it out."""
        return settings_hash({**asdict(self), "config": self.config}, [HERE / name for name in CODE])


SHARER_MARKS = {"question": 0.98, "background": 0.98}
WORD_SHARER = WordRecipe(SHARER_SHAPE, (0, 1, 2, 3), SHARER_MARKS, steps=600, background_share=0.2, outlier=16.0)
WORD_RECEIVER = WordRecipe(
    RECEIVER_SHAPE, (0, 1), {"question": 0.98, "told": 0.98}, steps=800, seeds=(1, 0, 2, 3), told_share=0.4
)
WORD_SHARER_PIECES = WordRecipe(
    {**SHARER_SHAPE, "num_hidden_layers": 4},  # one more, to put the pieces together
    (0, 1, 2, 3),
    SHARER_MARKS,
    steps=1000,
    pieces=True,
    warm_start_steps=200,
    background_share=0.2,
)
