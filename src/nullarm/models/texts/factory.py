"""From the text settings of a study to a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullarm.models.kinds import of_kind
from nullarm.models.texts.base import Text
from nullarm.models.texts.files import Files
from nullarm.models.texts.topics import Topics
from nullarm.models.texts.wikitext import WikiText
from nullarm.models.texts.world import WorldText

KINDS: Mapping[str, type[Text]] = {text.name: text for text in (Files, Topics, WikiText, WorldText)}
"""Every kind of text, by the name a study uses. To add one, write a `Text` and name it here."""


def make_text(settings: Mapping[str, Any]) -> Text:
    """The text that `settings` describe: `{"kind": "world", "test_documents": 32}`.

    Raises:
        DatasetError: The kind or a setting is unknown, or a setting is of the wrong type or out of range.
    """
    return of_kind("text", KINDS, settings)
