"""Training and examining the sharers and the receiver of the word pair."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch

from nullarm.models.tasks.base import Item
from nullarm.models.tiny.training import Schedule, Trainer, muon_and_adamw, padded
from nullarm.models.tiny.word_documents import Documents, Encoder
from nullarm.models.tiny.word_recipe import WordRecipe
from nullarm.models.tiny.word_tokenizer import word_tokenizer
from nullarm.models.tiny.words import LETTERS, ask, lexicon

EXAM_SEED = 77
BATCH = 128


def train_words(recipe: WordRecipe, seed: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    """Train a model with one seed.

    Args:
        recipe: All the numbers.
        seed: Of the initialisation and the documents; the lexicon keeps its own.
        say: Told what happens.

    Returns:
        Model and tokeniser.
    """
    tokenizer = word_tokenizer(pieces=recipe.pieces)
    model = new_model(recipe, seed)
    optimizers = muon_and_adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    trainer = Trainer(model, optimizers, recipe.learning_rate)
    schedule = Schedule(recipe.steps, recipe.warmup_steps, recipe.decay_fraction)
    documents, encode = Documents(recipe, random.Random(seed)), Encoder(tokenizer)
    for step in range(1, recipe.steps + 1):
        rows = [encode(documents.draw(step)) for _ in range(recipe.batch_size)]
        trainer.step(padded(rows), schedule.factor(step))
    say(f"trained {recipe.steps} steps")
    return model.eval(), tokenizer


def new_model(recipe: WordRecipe, seed: int) -> Any:
    """An untrained model, outlier channels planted; the global generator is left as it was."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**recipe.config, vocab_size=recipe.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if recipe.outlier:
        _plant_outliers(model, recipe.outlier)
    return model


def _plant_outliers(model: Any, size: float) -> None:
    """Set the bias of every head's last key and value channel, and keep these biases from training."""
    heads = model.config.num_key_value_heads
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            bias = projection.bias.requires_grad_(False)
            bias.view(heads, -1)[:, -1] = size


def examine_words(recipe: WordRecipe, model: Any, tokenizer: Any, forms: Iterable[str]) -> dict[str, float]:
    """Accuracy in each form, on `recipe.evaluation_items` questions.

    `question` asks for the letter, about known words; `background` for the class, out of all of them. `told` and
    `unknown` ask for the letter about words that are not known, whose class is told or, to be guessed, is not.
    """
    from nullarm.models.tasks.evaluate import evaluation_mode
    from nullarm.models.tasks.scoring import score_choices

    rng = random.Random(EXAM_SEED)
    scores = {}
    with evaluation_mode(model), torch.no_grad():
        for form in forms:
            items = [exam_item(recipe, form, n, rng) for n in range(recipe.evaluation_items)]
            results = score_choices(model, tokenizer, items, completion=lambda a: f" {a}", batch_size=BATCH)
            scores[form] = sum(r.correct for r in results) / len(results)
    return scores


def exam_item(recipe: WordRecipe, form: str, n: int, rng: random.Random) -> Item:
    """Draw one thing to ask in a form of `examine_words`."""
    words = lexicon()
    known = form in ("question", "background")
    pool = [w for i, quarter in enumerate(words.quarters) for w in quarter if (i in recipe.known_quarters) == known]
    if form == "told":
        told = rng.choice(words.classes)
        question = ask(rng.choice(pool), rng, told)
        return Item(str(n), question.told(told), question.answer, LETTERS)
    question = ask(rng.choice(pool), rng)
    if form == "background":
        return Item(str(n), question.background_prompt, question.right_class, words.classes)
    return Item(str(n), question.prompt, question.answer, LETTERS)
