"""How each kind of recipe is carried out, and what is asked of the model that comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

from nullarm.models.tiny.exam import Exam
from nullarm.models.tiny.recipe import ChatRecipe, Recipe, WorldRecipe
from nullarm.models.tiny.word_recipe import WordRecipe
from nullarm.models.tiny.world import World

Say = Callable[[str], None]
Find = Callable[[str], Path]
"""Directory of another built-in model, which one is made of."""


@singledispatch
def train(recipe: Recipe, seed: int, say: Say, find: Find) -> tuple[Any, Any]:
    """Model and tokeniser of one seed.

    Args:
        recipe: All the numbers.
        seed: Of the training.
        say: Told what happens.
        find: Where another built-in model lies.
    """
    raise TypeError(f"nobody knows how to train a {type(recipe).__name__}")


@singledispatch
def examine(recipe: Recipe, model: Any, tokenizer: Any) -> list[Exam]:
    """What the model learned, beside what it had to."""
    raise TypeError(f"nobody knows how to examine a {type(recipe).__name__}")


@train.register
def _(recipe: WorldRecipe, seed: int, say: Say, find: Find) -> tuple[Any, Any]:
    from nullarm.models.tiny.pretrain import pretrain

    return pretrain(recipe, seed, say)


@train.register
def _(recipe: ChatRecipe, seed: int, say: Say, find: Find) -> tuple[Any, Any]:
    from nullarm.models.tiny.finetune import finetune

    return finetune(recipe, seed, find("world"))


@train.register
def _(recipe: WordRecipe, seed: int, say: Say, find: Find) -> tuple[Any, Any]:
    from nullarm.models.tiny.word_pair import train_words

    return train_words(recipe, seed, say)


@examine.register
def _(recipe: WorldRecipe, model: Any, tokenizer: Any) -> list[Exam]:
    from nullarm.models.tiny.examine import examine as examined

    scores = examined(model, tokenizer, World(recipe.world), recipe.evaluation_items)
    return [Exam("plain", scores, recipe.pass_marks)]


@examine.register
def _(recipe: ChatRecipe, model: Any, tokenizer: Any) -> list[Exam]:
    from nullarm.models.tiny.examine import examine as examined

    world = World(recipe.base.world)
    plain = examined(model, tokenizer, world, recipe.evaluation_items)
    chat = examined(model, tokenizer, world, recipe.evaluation_items, chat=True)
    return [Exam("plain", plain, recipe.plain_marks), Exam("chat", chat, recipe.pass_marks)]


@examine.register
def _(recipe: WordRecipe, model: Any, tokenizer: Any) -> list[Exam]:
    from nullarm.models.tiny.word_pair import examine_words

    return [Exam("words", examine_words(recipe, model, tokenizer, recipe.pass_marks), recipe.pass_marks)]
