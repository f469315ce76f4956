"""Any local text: a file for each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nullarm.errors import DatasetError
from nullarm.models.tasks.rows import read_jsonl, text_field
from nullarm.models.texts.base import SPLITS, Document, Split, Text, documents_hash, estimated_tokens


@dataclass(frozen=True)
class Files(Text):
    """A file ending in `.jsonl` has a document in each line, `{"text": …}`, with an `id` or without; any other is one.

    An interval needs several documents.

    Attributes:
        train: Path of the file that is calibrated on.
        test: Path of the file that is evaluated on.
    """

    name: ClassVar[str] = "files"
    train: str = ""
    test: str = ""

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not getattr(self, split):
                raise DatasetError(f"text.{split} of files is missing", valid=f"the path of the {split} split's file")

    def tokens_per_split(self, split: Split) -> int:
        """A quarter of the characters."""
        return estimated_tokens(self.read(split))

    def content_id(self) -> str:
        """The documents; not where they lie."""
        return f"{self.name}:{documents_hash(self)}"

    def read(self, split: Split) -> Sequence[Document]:
        """Lines of a JSONL file, or the whole of a text file."""
        path = Path(getattr(self, split)).expanduser()
        if path.suffix != ".jsonl":
            return [Document(split, _whole(path))]
        return [
            Document(str(row.get("id", f"{split}-{number}")), text_field(row, "text", f"{path}, line {number}"))
            for number, row in read_jsonl(path)
        ]


def _whole(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise DatasetError("the text file is missing", value=str(path), next_command=f"ls {path.parent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the text file cannot be read: {error}", value=str(path)) from error
