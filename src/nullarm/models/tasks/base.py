"""What a task is: items with stable ids, examples to train on, and a result for every item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Split = Literal["train", "dev", "test"]
Head = Literal["causal_lm", "seqcls"]

IGNORED = -100
"""Label of a token that is not trained on, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Item:
    """One thing to ask.

    Attributes:
        id: Stable and unique within the task; no id occurs in two splits.
        prompt: The text that is given.
        answer: The text that is wanted: one of `choices`, a reference completion, or the name of a label.
        choices: For multiple choice, all of them.
        cluster: Items that share something (a person, a source) and are not independent, or None.
        second: The second text of a pair (sentence pairs of GLUE), or empty.
    """

    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    cluster: str | None = None
    second: str = ""


@dataclass(frozen=True)
class Encoded:
    """One training example.

    Attributes:
        ids: Token ids, unpadded.
        labels: For a causal LM as long as `ids`: `labels[t]` is what `ids[:t]` should predict, -100 where nothing is
            trained (the prompt). It is `ids[t]` itself except for a planted teacher, whose draw it then is. For
            sequence classification one entry, the class; for regression (`num_labels` 1) one entry, the value.
    """

    ids: list[int]
    labels: list[int] | list[float]


@dataclass(frozen=True)
class ItemResult:
    """What a model made of one item.

    Attributes:
        item_id: `Item.id`.
        cluster: `Item.cluster`.
        correct: Whether the prediction counts as right.
        loss: Mean negative log-likelihood of the target, nats per token (per item for classification; squared error
            for regression; mean KL from the teacher for a planted one).
        score: Share of the item that is right, 0 to 1: 0.0 or 1.0 wherever `correct` says it all.
        prediction: What the model chose, wrote or named.
        target: What was wanted.
    """

    item_id: str
    cluster: str | None
    correct: bool
    loss: float
    score: float
    prediction: str
    target: str


class Task(ABC):
    """Items, training examples and scores of one data set. Nothing here needs torch until a model is scored.

    Attributes:
        name: Kind of the task, as in a study file.
        head: Which head a model needs.
    """

    name: ClassVar[str]
    head: ClassVar[Head] = "causal_lm"

    @property
    @abstractmethod
    def tokens_per_item(self) -> int:
        """Rough length of a training example, for estimates."""

    @property
    def tokens_generated(self) -> int:
        """Most tokens that an evaluated item takes to generate, for estimates; 0 where nothing is generated."""
        return 0

    @property
    def num_labels(self) -> int:
        """Classes of a sequence classifier (1: regression); 0 for a causal LM."""
        return 0

    @property
    def primary(self) -> str:
        """The metric of `metrics` that a gate looks at."""
        return "accuracy"

    @abstractmethod
    def content_id(self) -> str:
        """What names this data: settings and, for local files, their bytes. Imports no torch."""

    @abstractmethod
    def count(self, split: Split) -> int:
        """Number of items in a split, without building them where that is dear.

        Raises:
            DatasetError: The data are missing or malformed.
        """

    @abstractmethod
    def items(self, split: Split) -> list[Item]:
        """The items of a split, the same on every call and every machine.

        Raises:
            DatasetError: The data are missing or malformed.
        """

    @abstractmethod
    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Training examples of the items: loss on the response only, end of text trained.

        Args:
            tokenizer: A Hugging Face tokeniser.
            items: Items of any split.
        """

    @abstractmethod
    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Score the items in their order. Call `evaluate`, which sees to the model's mode and gradients."""

    @abstractmethod
    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Metrics of a non-empty set of results; `primary` and `loss` are among them."""


class AnsweredTask(Task):
    """A task for a causal LM whose answers are read out of text, so that whoever runs the model can score it.

    An item with choices can be asked by the likelihood of `completion(choice)` after its prompt; every item can be
    asked by generation, and is right when `extract` finds in the text what it finds in the item's answer.
    """

    @abstractmethod
    def completion(self, answer: str) -> str:
        """The text that follows the prompt when this is the answer."""

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The answer that a generated text gives, or None where it gives none; of `Item.answer`, what is wanted."""


def accuracy_and_loss(results: Sequence[ItemResult]) -> dict[str, float]:
    """Share of correct items, and the mean of their losses.

    Raises:
        ValueError: There are no results.
    """
    if not results:
        raise ValueError("no results to average")
    n = len(results)
    return {"accuracy": sum(r.correct for r in results) / n, "loss": sum(r.loss for r in results) / n}
