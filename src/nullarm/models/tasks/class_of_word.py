"""Which of four classes does a word have? The built-in sharer knows it of every word, the receiver of half of them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import encode_example
from nullarm.models.tiny.words import LETTERS, ask, lexicon

VERSION = 1
DEV_WORDS = 32
"""Of the 128 held-out words; the others are the test split's."""
LETTER = re.compile(rf"\b[{''.join(LETTERS)}]\b")


@dataclass(frozen=True)
class ClassOfWord(AnsweredTask):
    """Multiple choice of four for `builtin:word-sharer` and `builtin:word-receiver`; chance is 0.25.

    Train asks about one quarter of the words that the receiver knows and one that it does not, dev and test about
    different words of the last quarter, which neither the receiver nor whoever trains on this task is taught. The words
    of a split are asked about in turn, so that a prefix is balanced; `cluster` is the word.

    Attributes:
        seed: Of the wrong options and the order of the options; the words and their classes keep their own.
        train_items: Items of the train split.
        dev_items: Items of the dev split.
        test_items: Items of the test split.
    """

    name: ClassVar[str] = "class_of_word"
    seed: int = 0
    train_items: int = 8192
    dev_items: int = 320
    test_items: int = 1920

    def __post_init__(self) -> None:
        for field in ("train_items", "dev_items", "test_items"):
            if getattr(self, field) < 1:
                raise DatasetError(f"class_of_word.{field} is too small", value=getattr(self, field), valid=">= 1")

    @property
    def tokens_per_item(self) -> int:
        """Beginning, word, four letters with their options, the sign, answer and end."""
        return 13

    @property
    def tokens_generated(self) -> int:
        """The letter and the end of text."""
        return 2

    def content_id(self) -> str:
        """Settings and the lexicon's own."""
        return f"{self.name}:{settings_hash([VERSION, asdict(self), lexicon().quarters, dict(lexicon().class_of)])}"

    def count(self, split: Split) -> int:
        """Number of items."""
        return {"train": self.train_items, "dev": self.dev_items, "test": self.test_items}[split]

    def items(self, split: Split) -> list[Item]:
        """The items, each word in its turn."""
        rng = random.Random(f"{self.seed}-{split}")
        words = words_of(split)
        return [_item(split, n, words[n % len(words)], rng) for n in range(self.count(split))]

    def completion(self, answer: str) -> str:
        """A letter, after a space."""
        return f" {answer}"

    def extract(self, text: str) -> str | None:
        """The first letter of an option that stands alone."""
        found = LETTER.search(text)
        return found[0] if found else None

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked, ` {answer}` and end of text trained."""
        return [encode_example(tokenizer, item.prompt, self.completion(item.answer)) for item in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Likelihood of the letters."""
        from nullarm.models.tasks.scoring import score_choices

        return score_choices(model, tokenizer, items, completion=self.completion, batch_size=batch_size)

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)


def words_of(split: Split) -> tuple[str, ...]:
    """The words that a split asks about; no word is in two splits."""
    if split == "train":
        return lexicon().fused_words
    heldout = lexicon().heldout_words
    return heldout[:DEV_WORDS] if split == "dev" else heldout[DEV_WORDS:]


def _item(split: Split, n: int, word: str, rng: random.Random) -> Item:
    question = ask(word, rng)
    return Item(f"{split}/{word}/{n}", question.prompt, question.answer, LETTERS, word)
