"""New knowledge and a new skill for the small world's base: two relations of its people, and subtraction."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, ClassVar

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import encode_example
from nullarm.models.tiny.recipe import WORLD
from nullarm.models.tiny.world import Question, World, with_distractors

TOOLS = tuple("hammer ladder mirror basket bottle button pillow ticket".split())
KINDS = ("tool", "friend", "subtract")
VERSION = 1
TRAIN_REPEATS = 3
"""Times each relation is in the training split, so that the three kinds are about equally frequent."""
LARGEST = 19
HELDOUT_PAIRS: dict[Split, int] = {"dev": 20, "test": 40}
DEV_PEOPLE = 12


@dataclass(frozen=True)
class WorldRelations(AnsweredTask):
    """The tool each person uses, the friend each has, and differences of numbers up to 19; multiple choice of four.

    Every relation is in the training split: it is knowledge to be taken in. Dev and test ask about different people,
    and about differences that are neither in the training split nor in each other. Where a split has more items than
    there are facts to ask about, the others differ in the wrong choices; `cluster` holds together what shares a fact.

    Attributes:
        seed: Of relations, splits and wrong choices.
        dev_items: Items of the dev split; a third of each kind.
        test_items: Items of the test split.
    """

    name: ClassVar[str] = "world_relations"
    seed: int = 4242
    dev_items: int = 180
    test_items: int = 360

    def __post_init__(self) -> None:
        for field in ("dev_items", "test_items"):
            if getattr(self, field) < len(KINDS):
                raise DatasetError(f"world_relations.{field} is too small", value=getattr(self, field), valid=">= 3")

    @property
    def tokens_per_item(self) -> int:
        """Questions are 14 to 21 tokens long."""
        return 18

    def content_id(self) -> str:
        """Settings and the world's own."""
        return f"{self.name}:{settings_hash([VERSION, asdict(self), asdict(WORLD.world)])}"

    def count(self, split: Split) -> int:
        """Number of items."""
        return len(self.items(split)) if split == "train" else self._wanted(split)

    def items(self, split: Split) -> list[Item]:
        """The items; dev and test with the kinds in turn, train in random order, so that a prefix is balanced."""
        source = _Relations(self.seed)
        if split == "train":
            taught = [_item(kind, subject, question, f"train-{n}") for kind, subject, question, n in source.train()]
            return random.Random(f"{self.seed}-order").sample(taught, len(taught))
        draws = islice(source.asked(split), self._wanted(split))
        return [_item(kind, subject, question, f"{split}-{n}") for kind, subject, question, n in draws]

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked, ` {answer}.` and end of text trained."""
        return [encode_example(tokenizer, item.prompt, self.completion(item.answer)) for item in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Likelihood of the choices."""
        from nullarm.models.tasks.scoring import score_choices

        return score_choices(model, tokenizer, items, completion=self.completion, batch_size=batch_size)

    def completion(self, answer: str) -> str:
        """The answer in the form that the base was trained on."""
        return f" {answer}."

    def extract(self, text: str) -> str | None:
        """The only word of a text, with or without a full stop after it."""
        found = re.fullmatch(r"\s*(\w+)\.?\s*", text)
        return found[1] if found else None

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)

    def _wanted(self, split: Split) -> int:
        return self.dev_items if split == "dev" else self.test_items


class _Relations:
    """Relations and held-out differences that follow from one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(WORLD.world)
        rng = random.Random(seed)
        people = self.world.people
        self.tool = {p: rng.choice(TOOLS) for p in people}
        self.friend = {p: rng.choice([q for q in people if q != p]) for p in people}
        pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a + 1)]
        rng.shuffle(pairs)
        shuffled = rng.sample(people, len(people))
        dev, test = HELDOUT_PAIRS["dev"], HELDOUT_PAIRS["test"]
        self.pairs: dict[Split, list[tuple[int, int]]] = {
            "dev": pairs[:dev],
            "test": pairs[dev : dev + test],
            "train": pairs[dev + test :],
        }
        self.people: dict[Split, list[str]] = {"dev": shuffled[:DEV_PEOPLE], "test": shuffled[DEV_PEOPLE:]}

    def train(self) -> Iterator[tuple[str, str, Question, int]]:
        """Every relation, repeated, and every difference that is not held out."""
        rng = random.Random(f"{self.seed}-train")
        for n in range(TRAIN_REPEATS):
            for person in self.world.people:
                yield "tool", person, self.about(person, "tool", rng), n
                yield "friend", person, self.about(person, "friend", rng), n
        for a, b in self.pairs["train"]:
            yield "subtract", f"{a}-{b}", _difference(a, b, rng), 0

    def asked(self, split: Split) -> Iterator[tuple[str, str, Question, int]]:
        """Questions of a held-out split without end, the three kinds in turn."""
        rng = random.Random(f"{self.seed}-{split}")
        people, pairs = self.people[split], self.pairs[split]
        n = 0
        while True:
            person, (a, b) = people[n % len(people)], pairs[n % len(pairs)]
            yield "tool", person, self.about(person, "tool", rng), n
            yield "friend", person, self.about(person, "friend", rng), n
            yield "subtract", f"{a}-{b}", _difference(a, b, rng), n
            n += 1

    def about(self, person: str, relation: str, rng: random.Random) -> Question:
        """Ask for a relation of a person."""
        if relation == "tool":
            answer = self.tool[person]
            return Question("", f"What tool does {person} use?", answer, with_distractors(answer, TOOLS, rng))
        answer = self.friend[person]
        choices = with_distractors(answer, self.world.people, rng)
        return Question("", f"Who is the friend of {person}?", answer, choices)


def _difference(a: int, b: int, rng: random.Random) -> Question:
    near = [str(n) for n in range(max(0, a - b - 3), a - b + 5)]
    return Question("", f"What is {a} - {b}?", str(a - b), with_distractors(str(a - b), near, rng))


def _item(kind: str, subject: str, question: Question, instance: str) -> Item:
    cluster = f"difference/{subject}" if kind == "subtract" else f"person/{subject}"
    return Item(f"{kind}/{subject}/{instance}", question.prompt, question.answer, question.choices, cluster)
