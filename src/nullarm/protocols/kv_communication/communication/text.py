"""Text-to-text: the sharer writes what the receiver needs to know, and the receiver reads it before it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nullarm.errors import InvalidResult
from nullarm.protocols.kv_communication.communication.rendering import Rendered, all_rendered

if TYPE_CHECKING:
    from nullarm.protocols.kv_communication.parameters import Text

BACKGROUND_REQUEST = (
    "{prompt}\n\nIn one sentence, state the background knowledge that is needed to answer the question above. "
    "Do not answer it."
)
"""What chat models are asked for, as in the original: background knowledge, not the answer."""


def written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    settings: Text,
    *,
    chat_template: bool,
    text_bytes: int | None = None,
) -> list[str]:
    """What the sharer writes about each prompt, greedily, all prompts in one batch.

    Args:
        model: The sharer, in evaluation mode.
        tokenizer: Its tokeniser.
        prompts: The items' prompts.
        settings: What it is asked, and the most tokens of its text.
        chat_template: Ask in its chat template.
        text_bytes: Most bytes of UTF-8; the rest is cut off at a character. All of it when left out.

    Raises:
        DatasetError: A request has no tokens, or is with the text longer than the sharer's context.
        InvalidResult: The sharer's logits are not numbers.
        ModelError: A chat template is missing.
    """
    from nullarm.protocols.kv_communication.communication.answer import generate, stop_ids_of
    from nullarm.protocols.kv_communication.communication.prefill import prefill, refuse_too_long

    requests = [asked(settings, prompt, chat_template=chat_template) for prompt in prompts]
    rows = [request.ids for request in all_rendered(tokenizer, requests, chat_template=chat_template)]
    for row in rows:
        refuse_too_long(model, len(row) + settings.max_new_tokens - 1)
    cache, last = prefill(model, [row[:-1] for row in rows]), [row[-1] for row in rows]
    continuations = generate(model, cache, last, settings.max_new_tokens, stop_ids_of(model))
    found = []
    for prompt, ids in zip(prompts, continuations, strict=True):
        if ids is None:
            raise InvalidResult("the sharer's logits are not numbers", value=prompt)
        found.append(cut(tokenizer.decode(ids, skip_special_tokens=True).strip(), text_bytes))
    return found


def readings(
    tokenizer: Any,
    prompts: Sequence[str],
    texts: Sequence[str],
    settings: Text,
    *,
    chat_template: bool,
    answer_prefix: str = "",
) -> list[Rendered]:
    """What the receiver reads: the sharer's text as an earlier turn of the chat, or in the template `reply`.

    Args:
        tokenizer: The receiver's.
        prompts: The items' prompts.
        texts: What the sharer wrote about each.
        settings: What the sharer was asked, and the template without a chat.
        chat_template: Use the receiver's chat template.
        answer_prefix: What the answer begins with.

    Raises:
        DatasetError: There are no tokens.
        ModelError: A chat template is missing.
    """
    if not chat_template:
        told = [_filled(settings.reply, prompt=p, text=text) for p, text in zip(prompts, texts, strict=True)]
        return all_rendered(tokenizer, told, chat_template=False, answer_prefix=answer_prefix)
    turns = [
        [("user", asked(settings, prompt, chat_template=True)), ("assistant", text)]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return all_rendered(tokenizer, prompts, chat_template=True, answer_prefix=answer_prefix, earlier=turns)


def asked(settings: Text, prompt: str, *, chat_template: bool) -> str:
    """The request to the sharer, by default for background knowledge; a plain model only goes on from the prompt."""
    default = BACKGROUND_REQUEST if chat_template else "{prompt}"
    return _filled(default if settings.request is None else settings.request, prompt=prompt)


def cut(text: str, text_bytes: int | None) -> str:
    """The longest beginning of a text that takes no more than so many bytes of UTF-8."""
    return text if text_bytes is None else text.encode()[:text_bytes].decode(errors="ignore")


def _filled(template: str, **parts: str) -> str:
    """A template with its places filled, in one go: braces in what is filled in are left alone, others too."""
    return re.sub(rf"{{({'|'.join(parts)})}}", lambda place: parts[place[1]], template)
