"""WikiText-2: good articles of Wikipedia (Merity et al. 2016, arXiv:1609.07843), which compression is compared on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.rows import Source, text_field
from nullarm.models.texts.base import SPLITS, Document, Split, Text, estimated_tokens

PUBLISHED_TOKENS: Mapping[Split, int] = {"train": 2_430_000, "test": 288_000}
"""With GPT-2's tokeniser."""
BETWEEN = "\n\n"
"""Between rows, as in the literature: all documents of a split joined with it are the text that others measure on."""
VERSION = 1
_TITLE = re.compile(r"\s*= (?!=).*(?<!=) =\s*")


@dataclass(frozen=True)
class WikiText(Text):
    """A document is an article: the rows from a title, `= Title =` between blank rows, up to the next.

    Attributes:
        path: Directory with `train.jsonl` and `test.jsonl`, the published rows as `{"text": …}`; None for the hub.
        revision: On the hub.
    """

    name: ClassVar[str] = "wikitext"
    downloads: ClassVar[bool] = True
    path: str | None = None
    revision: str = "main"

    def tokens_per_split(self, split: Split) -> int:
        """Known without reading when the rows are the hub's."""
        return PUBLISHED_TOKENS[split] if self.path is None else estimated_tokens(self.read(split))

    def content_id(self) -> str:
        """The rows."""
        return f"{self.name}:{settings_hash([VERSION, self._source.content(SPLITS)])}"

    def read(self, split: Split) -> Sequence[Document]:
        """The articles in their published order."""
        rows = [text_field(row, "text", where) for where, row in self._source.placed(split)]
        starts = [n for n in range(len(rows)) if _begins(rows, n)]
        bounds = [0, *starts[1:], len(rows)]
        return [
            Document(f"{split}-{k}", BETWEEN.join(rows[start:end])) for k, (start, end) in enumerate(pairwise(bounds))
        ]

    @property
    def _source(self) -> Source:
        return Source("Salesforce/wikitext", "wikitext-2-raw-v1", self.revision, self.path)


def _begins(rows: Sequence[str], n: int) -> bool:
    """Whether an article begins: formulae look like titles, but stand within their paragraphs."""
    around = [*rows[max(0, n - 1) : n], *rows[n + 1 : n + 2]]
    return _TITLE.fullmatch(rows[n]) is not None and not any(row.strip() for row in around)
