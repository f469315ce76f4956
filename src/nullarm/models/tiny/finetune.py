"""Fine-tuning the base of the small world to answer through a chat template, while it keeps the plain form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nullarm.models.quiet import without_progress_bars
from nullarm.models.tasks.base import IGNORED
from nullarm.models.tiny.examine import chat_form
from nullarm.models.tiny.recipe import ChatRecipe
from nullarm.models.tiny.tokenizer import END_OF_TURN
from nullarm.models.tiny.training import Batch, Schedule, Trainer, adamw, padded
from nullarm.models.tiny.world import SKILLS, World


def finetune(recipe: ChatRecipe, seed: int, base: Path) -> tuple[Any, Any]:
    """Train the base on questions in chat form, loss on the assistant's turn only.

    Args:
        recipe: All the numbers.
        seed: Of the examples and of the noise on new embeddings.
        base: Directory of the base.

    Returns:
        Model and tokeniser; the model ends its turns when it generates.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with without_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True).train()
    tokenizer = AutoTokenizer.from_pretrained(base)
    world = World(recipe.base.world)
    _wake_embeddings(recipe, model, tokenizer, world, seed)
    optimizers = adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    trainer = Trainer(model, optimizers, recipe.learning_rate)
    schedule = Schedule(recipe.steps, recipe.base.warmup_steps, recipe.base.decay_fraction)
    batches = _batches(recipe, tokenizer, world, random.Random(seed + 3))
    for step in range(1, recipe.steps + 1):
        trainer.step(next(batches), schedule.factor(step))
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(END_OF_TURN), tokenizer.eos_token_id]
    return model.eval(), tokenizer


def _wake_embeddings(recipe: ChatRecipe, model: Any, tokenizer: Any, world: World, seed: int) -> None:
    """Start tokens the base has never seen near the mean of those it has, and the chat markers at known tokens.

    Without it fine-tuning fails: most of these embeddings are what initialisation left.
    """
    rng = random.Random(seed + 1)
    documents = [world.document(rng) for _ in range(recipe.seen_documents)]
    known = sorted({i for ids in tokenizer(documents, add_special_tokens=False)["input_ids"] for i in ids})
    new = sorted(set(range(len(tokenizer))) - set(known))
    embeddings = model.get_input_embeddings().weight
    noise = torch.randn(len(new), embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        embeddings[new] = embeddings[known].mean(0) + recipe.noise * noise
        for marker, source in recipe.marker_sources.items():
            first = tokenizer(source, add_special_tokens=False)["input_ids"][0]
            embeddings[tokenizer.convert_tokens_to_ids(marker)] = embeddings[first]


def _batches(recipe: ChatRecipe, tokenizer: Any, world: World, rng: random.Random) -> Iterator[Batch]:
    while True:
        yield padded([_example(recipe, tokenizer, world, rng) for _ in range(recipe.batch_size)])


def _example(recipe: ChatRecipe, tokenizer: Any, world: World, rng: random.Random) -> tuple[list[int], list[int]]:
    if rng.random() < recipe.replay_share:
        ids = [*tokenizer(world.document(rng), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return ids, ids
    question = world.question(rng.choice(SKILLS), rng)
    prompt, completion = chat_form(tokenizer)
    given = tokenizer(prompt(question), add_special_tokens=False)["input_ids"]
    wanted = tokenizer(completion(question.answer) + END_OF_TURN, add_special_tokens=False)["input_ids"]
    return given + wanted, [IGNORED] * len(given) + wanted
