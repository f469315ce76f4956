"""What a model of the small world knows: multiple choice of four for each skill, on held-out questions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from nullarm.models.tasks.base import Item
from nullarm.models.tiny.world import SKILLS, Question, World

EXAM_SEED = 123


def examine(
    model: Any, tokenizer: Any, world: World, questions: int, *, chat: bool = False, batch_size: int = 64
) -> dict[str, float]:
    """Accuracy per skill, chance 0.25.

    Args:
        model: Causal LM, in any mode.
        tokenizer: Its tokeniser.
        world: The world it was taught.
        questions: How many per skill.
        chat: Ask through the chat template instead of in the plain form.
        batch_size: Rows in a forward pass.
    """
    import torch

    from nullarm.models.tasks.evaluate import evaluation_mode
    from nullarm.models.tasks.scoring import score_choices

    rng = random.Random(EXAM_SEED)
    prompt, completion = chat_form(tokenizer) if chat else (lambda q: q.prompt, plain_completion)
    scores = {}
    with evaluation_mode(model), torch.no_grad():
        for skill in SKILLS:
            asked = [world.question(skill, rng, heldout=True) for _ in range(questions)]
            items = [Item(str(i), prompt(q), q.answer, q.choices) for i, q in enumerate(asked)]
            results = score_choices(model, tokenizer, items, completion=completion, batch_size=batch_size)
            scores[skill] = sum(r.correct for r in results) / len(results)
    return scores


def plain_completion(answer: str) -> str:
    """What follows a plain prompt."""
    return f" {answer}."


def chat_form(tokenizer: Any) -> tuple[Callable[[Question], str], Callable[[str], str]]:
    """Prompt and completion in the form of the tokeniser's chat template."""

    def prompt(question: Question) -> str:
        turns = [{"role": "user", "content": question.message}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    return prompt, lambda answer: answer
