"""A prompt as one model reads it: its own chat template, its own tokens, and the characters of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nullarm.errors import DatasetError, ModelError

Span = tuple[int, int]
"""First character and the one after the last."""

Turn = tuple[str, str]
"""Role and content."""

MARKER = "MESSAGE-OF-THE-USER"
"""Stands for the message when looking where a chat template puts it."""

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The day that chat templates are told it is, or results would change at midnight: the one that Llama's take when they
are told none.
"""


def _clock_stopped_at(day: datetime) -> str:
    """The beginning of a chat template in which `strftime_now`, all that templates know of the clock, tells this day.

    A macro, for the library hands no function on to a template. The new line at its end is trimmed, as any behind a
    block, so that the template's own text begins as before.
    """
    told = "".join(f"|replace('%{code}', {day.strftime(f'%{code}')!r})" for code in "aAwdbBmyYHIMpSfjUWcxX")
    return f"{{% macro strftime_now(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n"


CLOCK = _clock_stopped_at(TODAY)


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


def all_rendered(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    chat_template: bool,
    answer_prefix: str = "",
    earlier: Sequence[Sequence[Turn]] | None = None,
) -> list[Rendered]:
    """Prompts as plain text, or as the last message of a user, ready for the answer and with thinking off.

    Args:
        tokenizer: Of the model that reads.
        prompts: The texts, at least one; they are tokenised in one go.
        chat_template: Put each into the tokeniser's chat template.
        answer_prefix: What the answer begins with, put behind the template.
        earlier: Turns before each; these need a chat template.

    Raises:
        DatasetError: A prompt has no tokens, or the chat template does not render it as it is.
        ModelError: There is no chat template, or it renders no prompt.
    """
    placed = [(prompt, (0, len(prompt))) for prompt in prompts]
    if chat_template:
        placed = _all_in_template(tokenizer, prompts, earlier or [()] * len(prompts))
    encoded = tokens_and_spans(
        tokenizer, [text + answer_prefix for text, _ in placed], special_tokens=not chat_template
    )
    found = []
    for prompt, (text, message), (ids, spans) in zip(prompts, placed, encoded, strict=True):
        if not ids:
            raise DatasetError("a prompt has no tokens", value=prompt, valid="text that the tokenizer encodes")
        begun = (len(text), len(text) + len(answer_prefix))
        found.append(Rendered(text + answer_prefix, ids, spans, message, begun, chat_template))
    return found


def all_completion_ids(tokenizer: Any, pairs: Sequence[tuple[Rendered, str]]) -> list[list[int]]:
    """The tokens of texts that follow prompts, at least one each.

    The two are tokenised together, as the model would meet them; by itself a completion is tokenised only where its
    beginning would change the prompt's tokens. Right behind a chat template its leading white space is left out.

    Args:
        tokenizer: Of the model that reads.
        pairs: Prompts, all of them templated or none, each with a completion.

    Raises:
        DatasetError: A completion has no tokens.
    """
    follows = [completion.lstrip() if _right_behind_template(prompt) else completion for prompt, completion in pairs]
    texts = [prompt.text + text for (prompt, _), text in zip(pairs, follows, strict=True)]
    special_tokens = not any(prompt.templated for prompt, _ in pairs)
    found = []
    whole = _tokens(tokenizer, texts, special_tokens=special_tokens)
    for (prompt, completion), text, ids in zip(pairs, follows, whole, strict=True):
        known = len(prompt.ids)
        rest = ids[known:] if ids[:known] == prompt.ids else _tokens(tokenizer, [text], special_tokens=False)[0]
        if not rest:
            raise DatasetError(
                "a completion has no tokens of its own", value=completion, valid="text that the tokenizer encodes"
            )
        found.append(rest)
    return found


def tokens_and_spans(
    tokenizer: Any, texts: Sequence[str], *, special_tokens: bool
) -> list[tuple[list[int], list[Span] | None]]:
    """Of each text its tokens, without an end of text, and the characters of each.

    Args:
        tokenizer: Fast, or there are no spans.
        texts: At least one.
        special_tokens: Add what the tokeniser by itself puts around a text.
    """
    if not tokenizer.is_fast:
        return [(ids, None) for ids in _tokens(tokenizer, texts, special_tokens=special_tokens)]
    encoded = tokenizer(
        list(texts), add_special_tokens=special_tokens, return_offsets_mapping=True,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    rows = [_without_end(tokenizer, ids, special_tokens) for ids in encoded["input_ids"]]
    return [
        (ids, _without_gaps(offsets[: len(ids)])) for ids, offsets in zip(rows, encoded["offset_mapping"], strict=True)
    ]


def name_of(tokenizer: Any) -> str:
    """What to call a tokeniser in an error: its model."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def _right_behind_template(prompt: Rendered) -> bool:
    return prompt.templated and prompt.answer_prefix[0] == prompt.answer_prefix[1]


def _tokens(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """As `tokens_and_spans`, without the spans, which take as long as the tokens."""
    encoded = tokenizer(
        list(texts), add_special_tokens=special_tokens,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    return [_without_end(tokenizer, ids, special_tokens) for ids in encoded["input_ids"]]


def _without_end(tokenizer: Any, ids: Sequence[int], special_tokens: bool) -> list[int]:
    ends = special_tokens and ids and ids[-1] == tokenizer.eos_token_id
    return list(ids[:-1] if ends else ids)


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


def _all_in_template(
    tokenizer: Any, prompts: Sequence[str], earlier: Sequence[Sequence[Turn]]
) -> list[tuple[str, Span]]:
    """Each prompt in the template behind its earlier turns, and where it is there."""
    turns = list(map(tuple, earlier))
    with_marker = {before: _in_template(tokenizer, [*before, ("user", MARKER)]) for before in set(turns)}
    found = []
    for prompt, before in zip(prompts, turns, strict=True):
        text = _in_template(tokenizer, [*before, ("user", prompt)])
        found.append((text, _place(tokenizer, text, prompt, with_marker[before])))
    return found


def _in_template(tokenizer: Any, turns: Sequence[Turn]) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template", value=name_of(tokenizer), valid="`chat_template: false`, or a chat model"
        )
    messages: list[Mapping[str, str]] = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=CLOCK + tokenizer.get_chat_template(),
                tokenize=False, add_generation_prompt=True, enable_thinking=False,
            )
        )  # fmt: skip
    except TemplateError as error:
        raise ModelError(f"the chat template does not render: {error}", value=name_of(tokenizer)) from error


def _place(tokenizer: Any, text: str, prompt: str, with_marker: str) -> Span:
    """Where a template has put the prompt: at the place of the marker, trimmed or not."""
    if MARKER not in with_marker:
        raise ModelError(
            "the chat template leaves the user's message out",
            value=name_of(tokenizer),
            valid="`chat_template: false`, or another model",
        )
    message = prompt.strip()
    at = with_marker.rfind(MARKER)
    start = at + len(text[at:]) - len(text[at:].lstrip()) if message else at
    if not text.startswith(message, start):
        raise DatasetError(
            "the chat template does not keep the user's message as it is",
            value=prompt,
            valid="a prompt without words that the template looks for, or `chat_template: false`",
        )
    return start, start + len(message)
