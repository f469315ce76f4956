"""From prompt and completion to token ids, with the prompt masked and the end of text trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nullarm.models.tasks.base import IGNORED, Encoded


@dataclass(frozen=True)
class Limits:
    """Longest prompt and completion, tokens; None for no limit.

    A prompt loses its beginning, for its end says what is asked. A completion loses its end.
    """

    prompt: int | None = None
    completion: int | None = None


NO_LIMITS = Limits()


def encode_prompt(tokenizer: Any, prompt: str, limits: Limits = NO_LIMITS) -> list[int]:
    """Token ids of a prompt, with the model's own beginning token but no end of text."""
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return _truncated(tokenizer, ids, limits)


def encode_pair(
    tokenizer: Any, prompt: str, completion: str, limits: Limits = NO_LIMITS
) -> tuple[list[int], list[int], bool]:
    """Token ids of prompt and completion.

    The two are tokenised together, as the model would meet them, and divided after their longest common prefix with the
    prompt alone: tokenising the completion by itself would give some tokenisers a second leading space.

    Returns:
        Prompt ids, completion ids (at least one), and whether the completion was cut.

    Raises:
        ValueError: The completion has no tokens.
    """
    alone = encode_prompt(tokenizer, prompt)
    together = encode_prompt(tokenizer, prompt + completion)
    shared = 0
    while shared < min(len(alone), len(together)) and alone[shared] == together[shared]:
        shared += 1
    rest = together[shared:]
    if not rest:
        raise ValueError(f"the completion {completion!r} has no tokens of its own after the prompt")
    cut = limits.completion is not None and len(rest) > limits.completion
    return _truncated(tokenizer, together[:shared], limits), rest[: limits.completion], cut


def encode_example(tokenizer: Any, prompt: str, completion: str, limits: Limits = NO_LIMITS) -> Encoded:
    """A training example: loss on the completion and, unless it was cut, on the end of text."""
    given, wanted, cut = encode_pair(tokenizer, prompt, completion, limits)
    if not cut:
        wanted = [*wanted, tokenizer.eos_token_id]
    return Encoded(given + wanted, [IGNORED] * len(given) + wanted)


def _truncated(tokenizer: Any, ids: list[int], limits: Limits) -> list[int]:
    if limits.prompt is None or len(ids) <= limits.prompt:
        return ids
    if ids[0] == tokenizer.bos_token_id:
        return ids[:1] + ids[len(ids) - limits.prompt + 1 :]
    return ids[len(ids) - limits.prompt :]
