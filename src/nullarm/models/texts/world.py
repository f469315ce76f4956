"""Documents of the built-in small world, as its model was trained on, several joined into one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.texts.base import Document, Split, Text
from nullarm.models.tiny.recipe import WORLD
from nullarm.models.tiny.world import World

VERSION = 1
TOKENS_PER_PIECE = 26
"""Mean length of a document of the world, with its own tokeniser."""


@dataclass(frozen=True)
class WorldText(Text):
    """New draws of what `builtin:world` was pre-trained on: facts, sums, copying, looking up.

    A document of the world is a sentence or two, so some are joined, a space between, into one document.

    Attributes:
        train_documents: Documents of the train split.
        test_documents: Documents of the test split.
        document_length: Documents of the world in one document.
    """

    name: ClassVar[str] = "world"
    train_documents: int = 256
    test_documents: int = 64
    document_length: int = 16

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if value < 1:
                raise DatasetError(f"text.{field} of world is too small", value=value, valid=">= 1")

    def tokens_per_split(self, split: Split) -> int:
        """Documents times their mean length."""
        return self._count(split) * self.document_length * TOKENS_PER_PIECE

    def content_id(self) -> str:
        """Settings and the world's own."""
        return f"{self.name}:{settings_hash([VERSION, asdict(self), asdict(WORLD.world)])}"

    def read(self, split: Split) -> Sequence[Document]:
        """Draws of a stream of the split's own."""
        world, rng = World(WORLD.world), random.Random(f"text-{split}")
        return [
            Document(f"{split}-{n}", " ".join(world.document(rng).strip() for _ in range(self.document_length)))
            for n in range(self._count(split))
        ]

    def _count(self, split: Split) -> int:
        return self.train_documents if split == "train" else self.test_documents
