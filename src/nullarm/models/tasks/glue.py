"""GLUE: nine sentence and sentence-pair tasks for a sequence classifier (Wang et al. 2018, arXiv:1804.07461)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nullarm.errors import DatasetError, nearest
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.agreement import matthews, pearson
from nullarm.models.tasks.base import Encoded, Head, Item, ItemResult, Split, Task, accuracy_and_loss
from nullarm.models.tasks.rows import Row, Source, chosen, text_field

VERSION = 1
LARGEST_SIMILARITY = 5.0


@dataclass(frozen=True)
class Subset:
    """One task of GLUE.

    Attributes:
        texts: Keys of its one or two texts.
        labels: Names of the classes by number; none for the similarity of STS-B.
        gate: Least value of the primary metric at which a probe counts as trained.
        sizes: Published rows for training and for validation.
        validation: Name of the validation split.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    gate: float
    sizes: tuple[int, int]
    validation: str = "validation"


_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")
SUBSETS: Mapping[str, Subset] = {
    "cola": Subset(("sentence",), ("unacceptable", "acceptable"), 0.70, (8551, 1043)),
    "mnli": Subset(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        0.70,
        (392702, 9815),
        "validation_matched",
    ),
    "mrpc": Subset(_PAIR, ("not_equivalent", "equivalent"), 0.75, (3668, 408)),
    "qnli": Subset(("question", "sentence"), _ENTAILED, 0.75, (104743, 5463)),
    "qqp": Subset(("question1", "question2"), ("not_duplicate", "duplicate"), 0.80, (363846, 40430)),
    "rte": Subset(_PAIR, _ENTAILED, 0.60, (2490, 277)),
    "sst2": Subset(("sentence",), ("negative", "positive"), 0.75, (67349, 872)),
    "stsb": Subset(_PAIR, (), 0.80, (5749, 1500)),
    "wnli": Subset(_PAIR, ("not_entailment", "entailment"), 0.55, (635, 71)),
}
"""By the name of the subset on the hub."""


@dataclass(frozen=True)
class Glue(Task):
    """One subset. Dev is a random part of the published training split, which loses it; test is the validation split.

    The published test labels are secret. STS-B is a regression: an item is right within half a point of five, its
    score falls linearly with the error, its loss is the squared error.

    Attributes:
        subset: Which of `SUBSETS`.
        path: Directory with `train.jsonl` and `validation.jsonl` (MNLI: `validation_matched.jsonl`), keys as
            published; None for the hub.
        revision: On the hub.
        seed: Of the choice of dev and test items.
        dev_items: Items taken from the training split.
        test_items: Random part of the validation split; None for all of it.
        max_tokens: Both texts together; the longer one loses its end.
    """

    name: ClassVar[str] = "glue"
    head: ClassVar[Head] = "seqcls"
    subset: str = "sst2"
    path: str | None = None
    revision: str = "main"
    seed: int = 0
    dev_items: int = 200
    test_items: int | None = None
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if self.subset not in SUBSETS:
            hint = nearest(self.subset, SUBSETS)
            raise DatasetError(f"GLUE has no such subset{hint}", value=self.subset, valid=SUBSETS)

    @property
    def facts(self) -> Subset:
        """What is known of the subset; `facts.gate` is the runbook's gate for `primary`."""
        return SUBSETS[self.subset]

    @property
    def tokens_per_item(self) -> int:
        """Half of the most: sentences are short."""
        return self.max_tokens // 2

    @property
    def num_labels(self) -> int:
        """Number of classes; 1 for STS-B."""
        return len(self.facts.labels) or 1

    @property
    def primary(self) -> str:
        """Accuracy; Pearson's correlation for STS-B."""
        return "accuracy" if self.facts.labels else "pearson"

    def content_id(self) -> str:
        """Settings and rows."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("path", "revision")}
        rows = self._source.content(["train", self.facts.validation])
        return f"{self.name}:{settings_hash([VERSION, settings, rows])}"

    def count(self, split: Split) -> int:
        """Number of items; known without reading when the rows are the hub's."""
        if split == "dev":
            return self.dev_items
        if split == "test" and self.test_items is not None:
            return self.test_items
        known = self.facts.sizes[split == "test"]
        published = known if self.path is None else len(self._source.rows(self._published(split)))
        return published - (self.dev_items if split == "train" else 0)

    def items(self, split: Split) -> list[Item]:
        """The items in their published order."""
        published = self._published(split)
        rows = self._source.rows(published)
        part = chosen(split, len(rows), seed=self.seed, dev_items=self.dev_items, test_items=self.test_items)
        return [self._item(rows[n], f"{published}-{n}") for n in part]

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """The text or pair with its class."""
        ids = self._encoded(tokenizer, items)
        if not self.facts.labels:
            return [Encoded(row, [float(item.answer)]) for row, item in zip(ids, items, strict=True)]
        number = {name: n for n, name in enumerate(self.facts.labels)}
        return [Encoded(row, [number[item.answer]]) for row, item in zip(ids, items, strict=True)]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """The likeliest class, or the similarity."""
        from nullarm.models.tasks.scoring import classify

        logits = classify(model, self._encoded(tokenizer, items), batch_size)
        if not self.facts.labels:
            return [_similar(item, float(row[0])) for item, row in zip(items, logits, strict=True)]
        losses = (-logits.log_softmax(-1)).tolist()
        return [_classified(item, self.facts.labels, row) for item, row in zip(items, losses, strict=True)]

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss, with `matthews` for CoLA and `pearson` for STS-B."""
        metrics = accuracy_and_loss(results)
        if self.subset == "cola":
            pairs = [(r.prediction == "acceptable", r.target == "acceptable") for r in results]
            metrics["matthews"] = matthews(pairs)
        if not self.facts.labels:
            metrics["pearson"] = pearson([(float(r.prediction), float(r.target)) for r in results])
        return metrics

    @property
    def _source(self) -> Source:
        return Source("nyu-mll/glue", self.subset, self.revision, self.path)

    def _published(self, split: Split) -> str:
        return self.facts.validation if split == "test" else "train"

    def _item(self, row: Row, item_id: str) -> Item:
        where = f"glue row {self.subset}/{item_id}"
        texts = [text_field(row, key, where) for key in self.facts.texts]
        return Item(item_id, texts[0], _answer(row, self.facts.labels, where), second="".join(texts[1:]))

    def _encoded(self, tokenizer: Any, items: Sequence[Item]) -> list[list[int]]:
        """Token ids. A tokeniser without a separator of its own (a decoder's) gets a newline between the texts."""
        options = {"truncation": True, "max_length": self.max_tokens}
        if len(self.facts.texts) == 1:
            return [list(tokenizer(item.prompt, **options)["input_ids"]) for item in items]
        if tokenizer.sep_token_id is None:
            return [list(tokenizer(f"{item.prompt}\n{item.second}", **options)["input_ids"]) for item in items]
        return [list(tokenizer(item.prompt, item.second, **options)["input_ids"]) for item in items]


def _answer(row: Row, labels: Sequence[str], where: str) -> str:
    label = row.get("label")
    if not labels:
        if isinstance(label, int | float) and 0 <= label <= LARGEST_SIMILARITY:
            return repr(float(label))
        raise DatasetError(f"{where}: the label is no similarity", value=label, valid="a number from 0 to 5")
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return labels[label]
    raise DatasetError(f"{where}: the label is no class", value=label, valid=range(len(labels)))


def _classified(item: Item, labels: Sequence[str], losses: Sequence[float]) -> ItemResult:
    best = min(range(len(labels)), key=losses.__getitem__)
    correct = labels[best] == item.answer
    loss = losses[labels.index(item.answer)]
    return ItemResult(item.id, item.cluster, correct, loss, float(correct), labels[best], item.answer)


def _similar(item: Item, value: float) -> ItemResult:
    error = abs(value - float(item.answer))
    score = max(0.0, 1 - error / LARGEST_SIMILARITY)
    return ItemResult(item.id, item.cluster, error <= 0.5, error**2, score, repr(value), item.answer)
