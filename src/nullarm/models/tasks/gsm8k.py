"""GSM8K: grade-school word problems with worked answers (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import Limits, encode_example
from nullarm.models.tasks.final_number import final_number
from nullarm.models.tasks.rows import Row, Source, chosen, text_field

SIZES = {"train": 7473, "test": 1319}
VERSION = 1


@dataclass(frozen=True)
class Gsm8k(AnsweredTask):
    r"""Prompt `Question: {q}\nAnswer:`, completion ` {a}`; right when the final numbers agree.

    Dev is a random part of the published training split, which loses it; test is of the published test split.

    Attributes:
        path: Directory with `train.jsonl` and `test.jsonl` as published; None for the hub.
        revision: On the hub.
        seed: Of the choice of dev and test items.
        dev_items: Items taken from the training split.
        test_items: Random part of the test split; None for all of it.
        max_prompt_tokens: A longer prompt loses its beginning.
        max_completion_tokens: A longer completion loses its end, in training and in the loss.
        max_new_tokens: Most tokens generated.
    """

    name: ClassVar[str] = "gsm8k"
    path: str | None = None
    revision: str = "main"
    seed: int = 0
    dev_items: int = 500
    test_items: int | None = None
    max_prompt_tokens: int = 256
    max_completion_tokens: int = 128
    max_new_tokens: int = 256

    @property
    def tokens_per_item(self) -> int:
        """Mean length with Llama's and Mistral's tokenisers."""
        return 190

    @property
    def tokens_generated(self) -> int:
        """One long answer holds up its whole batch."""
        return self.max_new_tokens

    def content_id(self) -> str:
        """Settings and rows."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        return f"{self.name}:{settings_hash([VERSION, settings, self._source.content(list(SIZES))])}"

    def count(self, split: Split) -> int:
        """Number of items; known without reading when the rows are the hub's."""
        if split == "dev":
            return self.dev_items
        published = SIZES[split] if self.path is None else len(self._source.rows(split))
        if split == "train":
            return published - self.dev_items
        return published if self.test_items is None else self.test_items

    def items(self, split: Split) -> list[Item]:
        """The items in their published order."""
        published = "train" if split == "dev" else split
        rows = self._source.rows(published)
        part = chosen(split, len(rows), seed=self.seed, dev_items=self.dev_items, test_items=self.test_items)
        return [_item(rows[n], f"{published}-{n}") for n in part]

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked; the worked answer and end of text trained."""
        return [encode_example(tokenizer, item.prompt, self.completion(item.answer), self._limits) for item in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Greedy answers, compared by their final number."""
        from nullarm.models.tasks.scoring import score_generation

        return score_generation(
            model, tokenizer, items, completion=self.completion, extract=self.extract,
            max_new_tokens=self.max_new_tokens, batch_size=batch_size, limits=self._limits,
        )  # fmt: skip

    def completion(self, answer: str) -> str:
        """The worked answer after a space."""
        return f" {answer}"

    def extract(self, text: str) -> str | None:
        """The final number."""
        return final_number(text)

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)

    @property
    def _limits(self) -> Limits:
        return Limits(self.max_prompt_tokens, self.max_completion_tokens)

    @property
    def _source(self) -> Source:
        return Source("openai/gsm8k", "main", self.revision, self.path)


def _item(row: Row, item_id: str) -> Item:
    where = f"gsm8k row {item_id}"
    answer = text_field(row, "answer", where)
    if final_number(answer) is None:
        raise DatasetError(f"{where}: the answer has no number", value=answer, valid="a worked answer ending #### N")
    return Item(item_id, f"Question: {text_field(row, 'question', where)}\nAnswer:", answer)
