"""A prompt as one model reads it: its own chat template, its own tokens, and the characters of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nullarm.errors import DatasetError, ModelError

Span = tuple[int, int]
"""First character and the one after the last."""

MARKER = "MESSAGE-OF-THE-USER"
"""Stands for the message when looking where a chat template puts it."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as one model reads it.

    Attributes:
        text: What is tokenised.
        ids: Its tokens, with what the tokeniser by itself puts before a plain text, and without an end of text.
        spans: The characters of each token, white space counted to the token behind it; empty for a token that stands
            for none, as an added BOS. None where the tokeniser is a slow one, which does not tell.
        message: Where the prompt is in `text`; in a chat template, without the white space around it.
        answer_prefix: Where the beginning of the answer is, at the end of `text`.
        templated: Whether `text` came out of a chat template.
    """

    text: str
    ids: list[int]
    spans: list[Span] | None
    message: Span
    answer_prefix: Span
    templated: bool


def rendered(
    tokenizer: Any,
    prompt: str,
    *,
    chat_template: bool,
    answer_prefix: str = "",
    earlier: Sequence[tuple[str, str]] = (),
) -> Rendered:
    """A prompt as plain text, or as the last message of a user, ready for the answer and with thinking off.

    Args:
        tokenizer: Of the model that reads.
        prompt: The text.
        chat_template: Put it into the tokeniser's chat template.
        answer_prefix: What the answer begins with, put behind the template.
        earlier: Turns before it, (role, content); these need a chat template.

    Raises:
        DatasetError: The prompt has no tokens.
        ModelError: There is no chat template, or it does not render the prompt as it is.
    """
    text, message = prompt, (0, len(prompt))
    if chat_template:
        text = _in_template(tokenizer, [*earlier, ("user", prompt)])
        message = _place(tokenizer, text, prompt, _in_template(tokenizer, [*earlier, ("user", MARKER)]))
    begun = (len(text), len(text) + len(answer_prefix))
    text += answer_prefix
    ids, spans = tokens_and_spans(tokenizer, text, special_tokens=not chat_template)
    if not ids:
        raise DatasetError("a prompt has no tokens", value=prompt, valid="text that the tokenizer encodes")
    return Rendered(text, ids, spans, message, begun, chat_template)


def completion_ids(tokenizer: Any, prompt: Rendered, completion: str) -> list[int]:
    """The tokens of a text that follows a prompt, at least one.

    The two are tokenised together, as the model would meet them; by itself the completion is tokenised only where its
    beginning would change the prompt's tokens. Right behind a chat template its leading white space is left out.

    Raises:
        DatasetError: The completion has no tokens.
    """
    begun = prompt.answer_prefix[1] > prompt.answer_prefix[0]
    follows = completion.lstrip() if prompt.templated and not begun else completion
    ids, _ = tokens_and_spans(tokenizer, prompt.text + follows, special_tokens=not prompt.templated)
    known = len(prompt.ids)
    rest = ids[known:] if ids[:known] == prompt.ids else tokens_and_spans(tokenizer, follows, special_tokens=False)[0]
    if not rest:
        raise DatasetError(
            "a completion has no tokens of its own", value=completion, valid="text that the tokenizer encodes"
        )
    return rest


def tokens_and_spans(tokenizer: Any, text: str, *, special_tokens: bool) -> tuple[list[int], list[Span] | None]:
    """Tokens of a text without an end of text, and the characters of each.

    Args:
        tokenizer: Fast, or there are no spans.
        text: The text.
        special_tokens: Add what the tokeniser by itself puts around a text.
    """
    encoded = tokenizer(
        text, add_special_tokens=special_tokens, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids = list(encoded["input_ids"])
    offsets = list(encoded["offset_mapping"]) if tokenizer.is_fast else None
    if special_tokens and ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids, None if offsets is None else _without_gaps(offsets[: len(ids)])


def name_of(tokenizer: Any) -> str:
    """What to call a tokeniser in an error: its model."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def _without_gaps(offsets: Sequence[Span]) -> list[Span]:
    """Characters between two tokens, white space most of all, belong to the one behind them.

    Byte-level tokenisers that trim offsets leave out the space with which a token begins, and tell no character at all
    of a token that is nothing but spaces; those that split at white space have no token for it.
    """
    spans: list[Span] = []
    reached = 0
    for start, end in offsets:
        spans.append((min(start, reached), end) if end > reached else (start, end))
        reached = max(reached, end)
    return spans


def _in_template(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template", value=name_of(tokenizer), valid="`chat_template: false`, or a chat model"
        )
    messages: list[Mapping[str, str]] = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    except TemplateError as error:
        raise ModelError(f"the chat template does not render: {error}", value=name_of(tokenizer)) from error


def _place(tokenizer: Any, text: str, prompt: str, with_marker: str) -> Span:
    """Where a template has put the prompt: at the place of the marker, trimmed or not."""
    message = prompt.strip()
    at = max(with_marker.rfind(MARKER), 0)
    start = at + len(text[at:]) - len(text[at:].lstrip()) if message else at
    if MARKER not in with_marker or not text.startswith(message, start):
        raise ModelError(
            "the chat template does not keep the user's message as it is",
            value=name_of(tokenizer),
            valid="`chat_template: false`, or another model",
        )
    return start, start + len(message)
