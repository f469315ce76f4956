"""Text-to-text: the sharer writes what the receiver needs to know, and the receiver reads it before it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nullarm.protocols.kv_communication.communication.rendering import Rendered, rendered

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
        DatasetError: A request has no tokens.
        ModelError: A chat template is missing.
    """
    from nullarm.protocols.kv_communication.communication.answer import generate, stop_ids_of
    from nullarm.protocols.kv_communication.communication.prefill import prefill

    requests = [rendered(tokenizer, asked(settings, p), chat_template=chat_template).ids for p in prompts]
    cache = prefill(model, [ids[:-1] for ids in requests])
    ids = generate(model, cache, [ids[-1] for ids in requests], settings.max_new_tokens, stop_ids_of(model))
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [cut(text.strip(), text_bytes) for text in texts]


def reading(
    tokenizer: Any, prompt: str, text: str, settings: Text, *, chat_template: bool, answer_prefix: str = ""
) -> Rendered:
    """What the receiver reads: the sharer's text as an earlier turn of the chat, or in the template `reply`.

    Args:
        tokenizer: The receiver's.
        prompt: The item's prompt.
        text: What the sharer wrote.
        settings: What the sharer was asked, and the template without a chat.
        chat_template: Use the receiver's chat template.
        answer_prefix: What the answer begins with.

    Raises:
        DatasetError: There are no tokens.
        ModelError: A chat template is missing.
    """
    if chat_template:
        turns = [("user", asked(settings, prompt)), ("assistant", text)]
        return rendered(tokenizer, prompt, chat_template=True, answer_prefix=answer_prefix, earlier=turns)
    told = _filled(settings.reply, prompt=prompt, text=text)
    return rendered(tokenizer, told, chat_template=False, answer_prefix=answer_prefix)


def asked(settings: Text, prompt: str) -> str:
    """The request to the sharer."""
    return _filled(settings.request, prompt=prompt)


def cut(text: str, text_bytes: int | None) -> str:
    """The longest beginning of a text that takes no more than so many bytes of UTF-8."""
    return text if text_bytes is None else text.encode()[:text_bytes].decode(errors="ignore")


def _filled(template: str, **parts: str) -> str:
    """A template with its places filled, in one go: braces in what is filled in are left alone, others too."""
    return re.sub(rf"{{({'|'.join(parts)})}}", lambda place: parts[place[1]], template)
