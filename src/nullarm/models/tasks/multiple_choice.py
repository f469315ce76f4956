"""Published multiple-choice questions, asked zero-shot with lettered choices."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import encode_example
from nullarm.models.tasks.rows import Row, Source, random_part

LETTERS = "ABCDE"
VERSION = 1
_OPENING = r"[\s:*\"'(\[]*"
_STATED = re.compile(rf"[Tt]he correct answer is{_OPENING}([{LETTERS}])(?=\s*$|[.:;!)\]*\"'])", re.MULTILINE)
_LETTER_ALONE = re.compile(rf"{_OPENING}([{LETTERS}])[\s.:;!)\]*\"']*")


@dataclass(frozen=True)
class MultipleChoice(AnsweredTask):
    """Questions of a published set with two to five choices each; the answer is a letter.

    A local copy is a directory with one `<split>.jsonl` for each published split, keys as published; where the set has
    several subjects, with a directory of these for every one of them.

    Attributes:
        hub_id: Name on the hub.
        subsets: Its configurations there that make up the set: one, or every subject.
        published: The published split that a split is made of. Where dev and test are made of the same one, test is
            what dev leaves of it.
        sizes: Rows of the published splits on the hub, where they are known and all used.
        mean_tokens: Mean length of a training example with Qwen's tokeniser, roughly.
        path: Directory of a local copy; None for the hub.
        revision: On the hub.
        seed: Of the choice of dev and test items.
        dev_items: Random part of the dev split; None for all of it.
        test_items: Random part of the test split; None for all of it.
    """

    hub_id: ClassVar[str]
    subsets: ClassVar[tuple[str, ...]]
    published: ClassVar[Mapping[Split, str]]
    sizes: ClassVar[Mapping[Split, int]]
    mean_tokens: ClassVar[int]
    path: str | None = None
    revision: str = "main"
    seed: int = 0
    dev_items: int | None = None
    test_items: int | None = None

    @abstractmethod
    def read_row(self, row: Row, where: str, place: str) -> Item | None:
        """The item of a row, or None for a row that the set leaves out.

        Args:
            row: As published.
            where: What an error calls it.
            place: Subset, published split and row number; unique within the set.

        Raises:
            DatasetError: The row is malformed.
        """

    @property
    def tokens_per_item(self) -> int:
        """Mean length, known beforehand."""
        return self.mean_tokens

    def content_id(self) -> str:
        """Settings and rows."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        splits = sorted(set(self.published.values()))
        rows = {subset: self._source(subset).content(splits) for subset in self.subsets}
        return f"{self.name}:{settings_hash([VERSION, settings, rows])}"

    def count(self, split: Split) -> int:
        """Number of items; without reading them where it is asked for, or known of the hub's rows."""
        self._published(split)
        wanted = {"dev": self.dev_items, "test": self.test_items}.get(split)
        if wanted is not None:
            return wanted
        return self.sizes[split] if self.path is None and split in self.sizes else len(self.items(split))

    def items(self, split: Split) -> list[Item]:
        """The items in their published order."""
        pool = self._pool(self._published(split))
        if split == "train":
            return pool
        if split == "test" and self.published["dev"] == self.published["test"]:
            dev = set(random_part(len(pool), self.dev_items, seed=self.seed))
            pool = [item for n, item in enumerate(pool) if n not in dev]
            if not pool:
                raise DatasetError(f"dev leaves {self.name} no test split", value=self.dev_items, valid=f"< {len(dev)}")
        wanted = self.dev_items if split == "dev" else self.test_items
        return [pool[n] for n in random_part(len(pool), wanted, seed=self.seed)]

    def completion(self, answer: str) -> str:
        """The letter, after the prompt's last words."""
        return f" {answer}"

    def extract(self, text: str) -> str | None:
        """The letter of `The correct answer is B`, or of a text that is nothing but a letter.

        Punctuation and brackets may stand around the letter, words may not stand right behind it: in `is A or B` and in
        `is A plant` no letter is stated. None also where different letters are.
        """
        alone = _LETTER_ALONE.fullmatch(text)
        stated = {alone[1]} if alone else set(_STATED.findall(text))
        return stated.pop() if len(stated) == 1 else None

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked; the letter and end of text trained."""
        return [encode_example(tokenizer, item.prompt, self.completion(item.answer)) for item in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Likelihood of the letters."""
        from nullarm.models.tasks.scoring import score_choices

        return score_choices(model, tokenizer, items, completion=self.completion, batch_size=batch_size)

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)

    def _published(self, split: Split) -> str:
        if split not in self.published:
            raise DatasetError(f"{self.name} has no {split} split", valid=sorted(self.published))
        return self.published[split]

    def _pool(self, published: str) -> list[Item]:
        items: dict[str, Item] = {}
        for subset in self.subsets:
            for n, (where, row) in enumerate(self._source(subset).placed(published)):
                item = self.read_row(row, where, f"{subset}/{published}-{n}")
                if item is not None and item.id in items:
                    raise DatasetError(f"{where}: another row has this id", value=item.id, valid="ids that are unique")
                if item is not None:
                    items[item.id] = item
        return list(items.values())

    def _source(self, subset: str) -> Source:
        nested = self.path is not None and len(self.subsets) > 1
        return Source(self.hub_id, subset, self.revision, str(Path(str(self.path), subset)) if nested else self.path)


def lettered(item_id: str, question: str, options: object, answer: int, where: str) -> Item:
    """An item that asks for the letter of option number `answer`, counted from 0.

    The prompt has the form of the C2C evaluation (Fu et al. 2025, arXiv:2510.03215), for figures to be held against.

    Raises:
        DatasetError: `options` is not a list of two to five texts, or the answer is none of them.
    """
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DatasetError(f"{where}: the choices are not a list of texts", value=options)
    if not 2 <= len(options) <= len(LETTERS):
        raise DatasetError(f"{where}: the number of choices", value=len(options), valid=f"2 to {len(LETTERS)}")
    if not 0 <= answer < len(options):
        raise DatasetError(f"{where}: the answer is none of the choices", value=answer, valid=range(len(options)))
    letters = LETTERS[: len(options)]
    return Item(item_id, _zero_shot(question, options, letters), letters[answer], tuple(letters))


def _zero_shot(question: str, options: Sequence[str], letters: str) -> str:
    choices = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return (
        f"Answer this question accurately:\n\n{question}\n\nChoices:\n{choices}\n\n"
        "Read the question and every choice, then decide on exactly one. Reply with nothing but "
        f'"The correct answer is {"/".join(letters)}", without reasons.\n\nThe correct answer is'
    )
