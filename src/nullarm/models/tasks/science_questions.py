"""School science: OpenBookQA (Mihaylov et al. 2018, arXiv:1809.02789) and ARC (Clark et al. 2018, arXiv:1803.05457)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import Item, Split
from nullarm.models.tasks.multiple_choice import MultipleChoice, lettered
from nullarm.models.tasks.rows import Row, text_field

PUBLISHED: Mapping[Split, str] = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class OpenBookQA(MultipleChoice):
    """OpenBookQA, questions only: the book of facts is not shown. Splits as published."""

    name: ClassVar[str] = "openbookqa"
    hub_id: ClassVar[str] = "allenai/openbookqa"
    subsets: ClassVar[tuple[str, ...]] = ("main",)
    published: ClassVar[Mapping[Split, str]] = PUBLISHED
    sizes: ClassVar[Mapping[Split, int]] = {"train": 4957, "dev": 500, "test": 500}
    mean_tokens: ClassVar[int] = 110

    def read_row(self, row: Row, where: str, place: str) -> Item:
        """The question stem with its labelled choices."""
        return _labelled(
            f"{self.name}/{text_field(row, 'id', where)}", text_field(row, "question_stem", where), row, where
        )


@dataclass(frozen=True)
class ArcChallenge(MultipleChoice):
    """The challenge set of ARC, every row: choices labelled 1 to 4 become A to D, three or five choices stay.

    Splits as published.
    """

    name: ClassVar[str] = "arc_challenge"
    hub_id: ClassVar[str] = "allenai/ai2_arc"
    subsets: ClassVar[tuple[str, ...]] = ("ARC-Challenge",)
    published: ClassVar[Mapping[Split, str]] = PUBLISHED
    sizes: ClassVar[Mapping[Split, int]] = {"train": 1119, "dev": 299, "test": 1172}
    mean_tokens: ClassVar[int] = 130

    def read_row(self, row: Row, where: str, place: str) -> Item:
        """The question with its labelled choices."""
        return _labelled(f"{self.name}/{text_field(row, 'id', where)}", text_field(row, "question", where), row, where)


def _labelled(item_id: str, question: str, row: Row, where: str) -> Item:
    """From `choices: {text: […], label: […]}` and `answerKey`; a choice gets the letter of its place, not its label."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise DatasetError(f"{where}: choices is no object", value=choices, valid="an object with 'text' and 'label'")
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise DatasetError(f"{where}: choices needs as many labels as texts", value=choices)
    if labels.count(row.get("answerKey")) != 1:
        raise DatasetError(
            f"{where}: answerKey is not the label of one choice", value=row.get("answerKey"), valid=labels
        )
    return lettered(item_id, question, texts, labels.index(row["answerKey"]), where)
