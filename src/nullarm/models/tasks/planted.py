"""Ground truth for rank placement: a teacher that is the base plus an update of known rank in every module.

The base is `random:planted`, whose projections all have one shape. A LoRA student of that base learns the teacher's
draws; given the right ranks it can, given the same ranks in other places it cannot. With the homogeneous pattern every
update has the same rank, and there is nothing to place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.facts import linear_shapes
from nullarm.models.hashing import settings_hash
from nullarm.models.reference import content_id
from nullarm.models.shapes import SHAPES
from nullarm.models.tasks.base import Encoded, Item, ItemResult, Split, Task, accuracy_and_loss

BASE = "random:planted"
"""The model that a study of this task adapts."""
TARGETS = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules with an update. Queries and keys have none: with random tokens attention is a nuisance, not a signal."""
PATTERNS = ("heterogeneous", "homogeneous")
VERSION = 1


@dataclass(frozen=True)
class Planted(Task):
    """Predict, after every word of a random sequence, what the teacher would say next.

    An item is right when the student's first choice after the last word is the teacher's; its `score` is the share of
    all positions where they agree, and its `loss` the mean KL divergence from the teacher, nats per position. Items
    carry no answers, for they are the teacher's: `ItemResult.target` has them.

    Attributes:
        seed: Of the teacher's update and of the sequences.
        pattern: `heterogeneous`: within each stratum of equal (in, out) a random half of the modules get `high_rank`,
            the others `low_rank`; `homogeneous`: all get `even_rank`.
        high_rank: Rank of the rich modules.
        low_rank: Rank of the poor modules.
        even_rank: Rank of every module of the homogeneous pattern.
        update_size: Frobenius norm of each update over that of its weight, whatever its rank.
        length: Words in a sequence.
        train_items: Training sequences.
        dev_items: Items of the dev split.
        test_items: Items of the test split.
    """

    name: ClassVar[str] = "planted"
    base: ClassVar[str] = BASE
    seed: int = 0
    pattern: str = "heterogeneous"
    high_rank: int = 8
    low_rank: int = 1
    even_rank: int = 8
    update_size: float = 0.5
    length: int = 16
    train_items: int = 4096
    dev_items: int = 200
    test_items: int = 400

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise DatasetError("planted.pattern names no pattern", value=self.pattern, valid=PATTERNS)
        most = min(min(shape) for shape in linear_shapes(BASE).values())
        for field in ("high_rank", "low_rank", "even_rank"):
            if not 0 <= getattr(self, field) <= most:
                raise DatasetError(f"planted.{field} is out of range", value=getattr(self, field), valid=f"0 to {most}")
        for field in ("length", "train_items", "dev_items", "test_items", "update_size"):
            if getattr(self, field) <= 0:
                raise DatasetError(f"planted.{field} is out of range", value=getattr(self, field), valid="> 0")

    @property
    def tokens_per_item(self) -> int:
        """Words of a sequence and the last draw."""
        return self.length + 1

    def content_id(self) -> str:
        """Settings and the base."""
        return f"{self.name}:{settings_hash([VERSION, asdict(self), content_id(BASE)])}"

    def ranks(self) -> dict[str, int]:
        """The truth: rank of the update of every target module, by module name. Imports no torch."""
        rng = random.Random(f"{self.seed}-ranks")
        strata: dict[tuple[int, int], list[str]] = {}
        for name, shape in linear_shapes(BASE).items():
            if name.rpartition(".")[2] in TARGETS:
                strata.setdefault(shape, []).append(name)
        if self.pattern == "homogeneous":
            return {name: self.even_rank for names in strata.values() for name in names}
        rich = {name for names in strata.values() for name in rng.sample(names, len(names) // 2)}
        return {n: self.high_rank if n in rich else self.low_rank for names in strata.values() for n in names}

    def count(self, split: Split) -> int:
        """Number of items."""
        return {"train": self.train_items, "dev": self.dev_items, "test": self.test_items}[split]

    def items(self, split: Split) -> list[Item]:
        """Sequences of random words, `w0` (end of text) not among them."""
        rng = random.Random(f"{self.seed}-{split}")
        words = [f"w{i}" for i in range(1, SHAPES["planted"].config["vocab_size"])]
        prompts = [" ".join(rng.choices(words, k=self.length)) for _ in range(self.count(split))]
        return [Item(f"{split}-{n}", prompt, "") for n, prompt in enumerate(prompts)]

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """After every word, one draw from the teacher; the last draw also ends the sequence."""
        from nullarm.models.tasks.teacher import teacher_draws

        return teacher_draws(self, tokenizer, items)

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Agreement with the teacher and divergence from it."""
        from nullarm.models.tasks.teacher import compare

        return compare(self, model, tokenizer, items, batch_size=batch_size)

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy at the last position, `agreement` over all positions, and loss."""
        return {**accuracy_and_loss(results), "agreement": sum(r.score for r in results) / len(results)}
