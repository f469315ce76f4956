"""Training the base of the small world from nothing: packed documents, a warm start on pairs, then the mixture."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nullarm.models.tiny.recipe import WorldRecipe
from nullarm.models.tiny.tokenizer import build_tokenizer
from nullarm.models.tiny.training import Schedule, Trainer, muon_and_adamw
from nullarm.models.tiny.world import NOUNS, World

PAIR_PROBES = 64


def pretrain(recipe: WorldRecipe, seed: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    """Train tokeniser and model with one seed.

    Args:
        recipe: All the numbers.
        seed: Of the initialisation, the corpus and its order; the world keeps its own.
        say: Told what happens, a line at a time.

    Returns:
        Model and tokeniser.
    """
    world = World(recipe.world)
    tokenizer = world_tokenizer(recipe)
    model = new_model(recipe, len(tokenizer), seed)
    optimizers = muon_and_adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    trainer = Trainer(model, optimizers, recipe.learning_rate)
    used = _warm_start(recipe, trainer, tokenizer, world, seed, say)
    schedule = Schedule(used + recipe.mixed_steps, recipe.warmup_steps, recipe.decay_fraction)
    corpus = pack(world.document, tokenizer, recipe.corpus_tokens, recipe.sequence_length, random.Random(seed + 7))
    batches = epochs(corpus, recipe.batch_size, torch.Generator().manual_seed(seed))
    for step in range(used + 1, schedule.steps + 1):
        rows = next(batches)
        trainer.step((rows, rows), schedule.factor(step))
    say(f"trained {used} warm and {recipe.mixed_steps} mixed steps")
    return model, tokenizer


def world_tokenizer(recipe: WorldRecipe) -> Any:
    """The tokeniser of the recipe's world."""
    world, rng = World(recipe.world), random.Random(recipe.world.seed + 1)
    return build_tokenizer((world.document(rng) for _ in range(recipe.tokenizer_documents)), recipe.vocabulary_size)


def new_model(recipe: WorldRecipe, vocabulary: int, seed: int) -> Any:
    """An untrained model; the global generator that transformers draws from is left as it was."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **recipe.config))


def pack(
    draw: Callable[[random.Random], str], tokenizer: Any, tokens: int, length: int, rng: random.Random
) -> torch.Tensor:
    """Documents, each with its end of text, packed end to end and cut into rows: `[sequence, length]`."""
    ids: list[int] = []
    while len(ids) < tokens:
        for document in tokenizer([draw(rng) for _ in range(2000)], add_special_tokens=False)["input_ids"]:
            ids += [*document, tokenizer.eos_token_id]
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def epochs(rows: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Full batches without end, reshuffled each time round."""
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for chosen in torch.split(order, batch_size):
            if len(chosen) == batch_size:
                yield rows[chosen]


def pair_accuracy(model: Any, tokenizer: Any, rng: random.Random) -> float:
    """How often the model completes one of four pairs that it has just been given once."""
    rows: list[list[int]] = []
    wanted: list[int] = []
    for _ in range(PAIR_PROBES):
        keys, values = rng.sample(NOUNS, 4), rng.sample(NOUNS, 4)
        asked = rng.randrange(4)
        shown = "".join(f" {k} {v}." for k, v in zip(keys, values, strict=True))
        rows.append(tokenizer(f"{shown} {keys[asked]}")["input_ids"])
        wanted.append(tokenizer(f" {values[asked]}")["input_ids"][0])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        guesses = model(input_ids=ids, use_cache=False).logits.argmax(-1)
    last = [int(guess[len(row) - 1]) for row, guess in zip(rows, guesses, strict=True)]
    return sum(a == b for a, b in zip(last, wanted, strict=True)) / PAIR_PROBES


def _warm_start(
    recipe: WorldRecipe, trainer: Trainer, tokenizer: Any, world: World, seed: int, say: Callable[[str], None]
) -> int:
    """Train on restated pairs until looking up works; the number of steps it took."""
    tokens = (recipe.warm_start_steps * recipe.batch_size + 1) * recipe.sequence_length
    corpus = pack(world.warm_start_document, tokenizer, tokens, recipe.sequence_length, random.Random(seed + 99))
    batches = epochs(corpus, recipe.batch_size, torch.Generator().manual_seed(seed))
    for step in range(1, recipe.warm_start_steps + 1):
        rows = next(batches)
        trainer.step((rows, rows), min(1.0, step / recipe.warmup_steps))
        if step % recipe.warm_start_check == 0:
            accuracy = pair_accuracy(trainer.model, tokenizer, random.Random(5))
            say(f"warm start, step {step}: pair accuracy {accuracy:.2f}")
            if accuracy > recipe.warm_start_accuracy:
                return step
    return recipe.warm_start_steps
