"""One prompt at a time, where the package reads many in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nullarm.protocols.kv_communication.communication.exchange import Exchange, exchanges
from nullarm.protocols.kv_communication.communication.rendering import (
    Rendered,
    Turn,
    all_completion_ids,
    all_rendered,
)


def rendered(tokenizer: Any, prompt: str, *, chat_template: bool, earlier: Sequence[Turn] = ()) -> Rendered:
    """A prompt as one model reads it."""
    return all_rendered(tokenizer, [prompt], chat_template=chat_template, earlier=[earlier])[0]


def completion_ids(tokenizer: Any, prompt: Rendered, completion: str) -> list[int]:
    """The tokens of a text that follows a prompt."""
    return all_completion_ids(tokenizer, [(prompt, completion)])[0]


def exchange(prompt: str, receiver_tokenizer: Any, sharer_tokenizers: Sequence[Any], **options: Any) -> Exchange:
    """What every model reads for an item."""
    return exchanges([prompt], receiver_tokenizer, sharer_tokenizers, **options)[0]
