"""The reference pages that Python carries for its own `help`: real English prose, on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nullarm.models.texts.base import Document, Split, Text, documents_hash, estimated_tokens

TEST_ONE_IN = 5


@dataclass(frozen=True)
class Topics(Text):
    """About 80 pages of `pydoc_data.topics`, 460,000 characters; other versions of Python have others.

    A page's own hash says which split it is in, so that pages of the same text under two names stay together.
    """

    name: ClassVar[str] = "topics"

    def tokens_per_split(self, split: Split) -> int:
        """A quarter of the characters."""
        return estimated_tokens(self.read(split))

    def content_id(self) -> str:
        """The pages of this Python."""
        return f"{self.name}:{documents_hash(self)}"

    def read(self, split: Split) -> Sequence[Document]:
        """Pages in the order of their names."""
        from pydoc_data.topics import topics

        return [Document(name, text) for name, text in sorted(topics.items()) if _tested(text) == (split == "test")]


def _tested(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % TEST_ONE_IN == 0
