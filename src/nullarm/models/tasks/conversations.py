"""Conversations to train on: the last answer of each, given what went before (OpenHermes-2.5, Teknium 2023)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import Limits, encode_example
from nullarm.models.tasks.rows import Row, Source, text_field

ROLES = {"system": "System", "human": "User", "gpt": "Assistant"}
VERSION = 1


@dataclass(frozen=True)
class Conversations(AnsweredTask):
    """The last assistant turn of a conversation, given the turns before it as one text.

    A row is `{"conversations": [{"from": "system" | "human" | "gpt", "value": …}, …]}`. A user turn that stands alone
    is the prompt as it is; several turns are joined by blank lines, each after its role (`User: …`), so a chat template
    sees them as one message. Rows that do not end with a user turn and its answer are left out. Dev and test are
    random parts, which train loses. An item is right when the answer is generated word for word: look at the loss.

    Attributes:
        path: Directory with a local copy, `train.jsonl`; None for the hub.
        revision: On the hub.
        seed: Of the choice of dev and test items.
        first_rows: Published rows that are used, from the first.
        dev_items: Items of the dev split.
        test_items: Items of the test split.
        max_prompt_tokens: A longer prompt loses its beginning.
        max_completion_tokens: A longer answer loses its end, in training and in the loss.
        max_new_tokens: Most tokens generated.
    """

    name: ClassVar[str] = "conversations"
    path: str | None = None
    revision: str = "main"
    seed: int = 0
    first_rows: int = 500_000
    dev_items: int = 500
    test_items: int = 500
    max_prompt_tokens: int = 1024
    max_completion_tokens: int = 1024
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for field in ("first_rows", "dev_items", "test_items"):
            if getattr(self, field) < 1:
                raise DatasetError(f"conversations.{field} is too small", value=getattr(self, field), valid=">= 1")

    @property
    def tokens_per_item(self) -> int:
        """Mean length with Qwen's tokeniser, roughly."""
        return 350

    @property
    def tokens_generated(self) -> int:
        """One long answer holds up its whole batch."""
        return self.max_new_tokens

    def content_id(self) -> str:
        """Settings and rows."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        return f"{self.name}:{settings_hash([VERSION, settings, self._source.content(['train'])])}"

    def count(self, split: Split) -> int:
        """Number of items; that of train only after reading them."""
        return {"dev": self.dev_items, "test": self.test_items}.get(split) or len(self.items(split))

    def items(self, split: Split) -> list[Item]:
        """The items in their published order."""
        rows = self._source.placed("train", self.first_rows)
        pool = [item for n, (where, row) in enumerate(rows) if (item := _item(row, f"{self.name}/train-{n}", where))]
        held = self.dev_items + self.test_items
        if held >= len(pool):
            raise DatasetError("dev and test leave no conversation to train on", value=held, valid=f"< {len(pool)}")
        drawn = random.Random(self.seed).sample(range(len(pool)), held)
        split_of: dict[int, Split] = {n: "dev" if k < self.dev_items else "test" for k, n in enumerate(drawn)}
        return [item for n, item in enumerate(pool) if split_of.get(n, "train") == split]

    def completion(self, answer: str) -> str:
        """The answer on a new paragraph."""
        return f"\n\n{answer}"

    def extract(self, text: str) -> str | None:
        """The whole text without the white space around; None when that is nothing."""
        return text.strip() or None

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked; the last answer and end of text trained."""
        return [encode_example(tokenizer, i.prompt, self.completion(i.answer), self._limits) for i in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Greedy answers, and the likelihood of the given ones."""
        from nullarm.models.tasks.scoring import score_generation

        return score_generation(
            model, tokenizer, items, completion=self.completion, extract=self.extract,
            max_new_tokens=self.max_new_tokens, batch_size=batch_size, limits=self._limits,
        )  # fmt: skip

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)

    @property
    def _limits(self) -> Limits:
        return Limits(self.max_prompt_tokens, self.max_completion_tokens)

    @property
    def _source(self) -> Source:
        return Source("teknium/OpenHermes-2.5", "default", self.revision, self.path)


def _item(row: Row, item_id: str, where: str) -> Item | None:
    turns = _turns(row, where)
    if [role for role, _ in turns[-2:]] != ["human", "gpt"] or not turns[-1][1].strip():
        return None
    earlier = turns[:-1]
    prompt = "\n\n".join(f"{ROLES[role]}: {text}" for role, text in earlier) if len(earlier) > 1 else earlier[0][1]
    return Item(item_id, prompt, turns[-1][1])


def _turns(row: Row, where: str) -> list[tuple[str, str]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DatasetError(f"{where}: conversations is not a list of turns", value=turns)
    pairs = [(text_field(turn, "from", where), text_field(turn, "value", where)) for turn in turns]
    for role, _ in pairs:
        if role not in ROLES:
            raise DatasetError(f"{where}: a turn is from nobody known", value=role, valid=ROLES)
    return pairs
