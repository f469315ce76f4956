"""What a text is: documents with stable ids in two splits that share none of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CHARACTERS_PER_TOKEN = 4
"""Of English prose with a large vocabulary, for estimates."""


@dataclass(frozen=True)
class Document:
    """A piece of text that is independent of the others.

    Attributes:
        id: Stable and unique over both splits.
        text: Its words; never blank.
    """

    id: str
    text: str


class Text(ABC):
    """Documents of one source. Nothing here needs torch.

    Attributes:
        name: Kind of the text, as in a study file.
    """

    name: ClassVar[str]
    downloads: ClassVar[bool] = False
    """Whether its documents may have to be fetched before they can be counted."""

    @abstractmethod
    def tokens_per_split(self, split: Split) -> int:
        """Rough number of tokens, for estimates; a published text is not downloaded for it."""

    @abstractmethod
    def content_id(self) -> str:
        """What names these documents, and changes when one of them does."""

    @abstractmethod
    def read(self, split: Split) -> Sequence[Document]:
        """Documents of a split in their order, before the splits are compared.

        Raises:
            DatasetError: The data are missing or malformed.
        """

    def documents(self, split: Split) -> Sequence[Document]:
        """Documents of a split in their order, the same on every call; none of them is in the other split.

        Args:
            split: What is calibrated on is `train`, what is evaluated on is `test`.

        Raises:
            DatasetError: The data are missing or malformed, a split is empty, or a document is in both.
        """
        read = {name: self.read(name) for name in SPLITS}
        for name, documents in read.items():
            _refuse_empty(f"{self.name}.{name}", documents)
        _refuse_shared(self.name, read["train"], read["test"])
        _refuse_repeated(self.name, [*read["train"], *read["test"]])
        return read[split]


def documents_hash(text: Text) -> str:
    """SHA-256, in hex, of every document of both splits, which are compared first.

    Raises:
        DatasetError: As `Text.documents`.
    """
    return settings_hash({split: [[d.id, d.text] for d in text.documents(split)] for split in SPLITS})


def estimated_tokens(documents: Sequence[Document]) -> int:
    """Tokens, from the number of characters."""
    return 1 + sum(len(d.text) for d in documents) // CHARACTERS_PER_TOKEN


def _refuse_empty(where: str, documents: Sequence[Document]) -> None:
    if not documents:
        raise DatasetError(f"{where} has no documents", valid="at least one document in each split")
    for document in documents:
        if not document.text.strip():
            raise DatasetError(f"{where}: a document is blank", value=document.id, valid="documents with text")


def _refuse_shared(name: str, train: Sequence[Document], test: Sequence[Document]) -> None:
    """What is calibrated on must never be evaluated on. White space does not make a document another one."""
    trained = {" ".join(d.text.split()): d.id for d in train}
    tested = {" ".join(d.text.split()): d.id for d in test}
    if trained.keys() == tested.keys():
        raise DatasetError(f"{name}: train and test have the same content", valid="splits that share no document")
    for text, test_id in tested.items():
        if text in trained:
            raise DatasetError(
                f"{name}: a document occurs in train ({trained[text]}) and in test",
                value=test_id,
                valid="splits that share no document",
                next_command="take it out of one of the two splits",
            )


def _refuse_repeated(name: str, documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise DatasetError(
                f"{name}: two documents have the same id", value=document.id, valid="ids unique over both splits"
            )
        seen.add(document.id)
