"""A small world that a 170k-parameter model can learn: facts about people, sums, copying, reversing, looking up.

Everything follows from one seed. Randomness is a `random.Random` handed in by the caller, never the module's own state.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SYLLABLES = tuple(
    "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu"
    " ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo vu za ze zi zo zu".split()
)
COLORS = tuple("red blue green black white pink grey gold".split())
JOBS = tuple("baker doctor farmer pilot singer tailor miner guard".split())
FOODS = tuple("rice soup bread fish cheese plums beans cake".split())
NOUNS = tuple(
    "cat dog box lamp key map cup pen coin bell boat book ring nail shoe drum fork rope door tree leaf rock sand"
    " wolf".split()
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

STATEMENTS = {
    "city": "{p} lives in {v}.",
    "job": "{p} works as a {v}.",
    "food": "{p} likes to eat {v}.",
    "color": "{p} has a {v} house.",
}
QUESTIONS = {
    "city": "Where does {p} live?",
    "job": "What is the job of {p}?",
    "food": "What does {p} eat?",
    "color": "What color is the house of {p}?",
}
SKILLS = ("fact", "add", "copy", "reverse", "lookup")
"""The five things the world asks for."""


@dataclass(frozen=True)
class WorldKnobs:
    """What a world is made of.

    Attributes:
        seed: Everything in the world follows from it.
        people: How many people, each with four facts.
        cities: How many cities they live in.
        largest_addend: Sums are of two numbers from 0 to this.
        heldout_people: Share of the people who are never asked about in training (only stated).
        heldout_sums: Share of the pairs of addends that never occur in training.
        skill_weights: How often a question document asks for each of `SKILLS`.
        statement_share: Share of documents that state one person's facts.
        sum_share: Share of documents that list sums.
        restate_share: Share of the lookup documents that restate pairs plainly (they seed induction).
    """

    seed: int = 0
    people: int = 48
    cities: int = 12
    largest_addend: int = 19
    heldout_people: float = 0.25
    heldout_sums: float = 0.15
    skill_weights: tuple[float, ...] = (0.15, 0.25, 0.12, 0.12, 0.36)
    statement_share: float = 0.18
    sum_share: float = 0.12
    restate_share: float = 0.35


@dataclass(frozen=True)
class Question:
    """One multiple-choice question of four; chance is 0.25.

    Attributes:
        context: Text that precedes the question, or empty.
        text: The question itself.
        answer: The right choice.
        choices: All choices, the right one among them.
    """

    context: str
    text: str
    answer: str
    choices: tuple[str, ...]

    @property
    def message(self) -> str:
        """Context and question, as a user would send them in a chat."""
        return f"{self.context} {self.text}" if self.context else self.text

    @property
    def prompt(self) -> str:
        """The plain form that the base model was trained on; the completion is ` {answer}.`."""
        lead = f"{self.context} " if self.context else ""
        return f"{lead}Question: {self.text} Answer:"


class World:
    """People with facts, pairs of addends, and the documents and questions made of them."""

    def __init__(self, knobs: WorldKnobs | None = None) -> None:
        self.knobs = knobs = knobs or WorldKnobs()
        rng = random.Random(knobs.seed)
        names = _names(rng, knobs.people + knobs.cities)
        self.cities, self.people = names[: knobs.cities], names[knobs.cities :]
        self.values = {"city": self.cities, "job": JOBS, "food": FOODS, "color": COLORS}
        self.facts = {p: {a: rng.choice(v) for a, v in self.values.items()} for p in self.people}
        self.people_heldout, self.people_asked = _split(rng, self.people, knobs.heldout_people)
        addends = range(knobs.largest_addend + 1)
        self.sums_heldout, self.sums_seen = _split(rng, [(a, b) for a in addends for b in addends], knobs.heldout_sums)

    def question(self, skill: str, rng: random.Random, *, heldout: bool = False) -> Question:
        """Draw a question for one skill; with `heldout`, about people or sums never asked about in training."""
        if skill == "fact":
            return self._fact(rng, self.people_heldout if heldout else self.people_asked)
        if skill == "add":
            a, b = rng.choice(self.sums_heldout if heldout else self.sums_seen)
            pool = [str(n) for n in range(max(0, a + b - 4), a + b + 5)]
            return Question("", f"What is {a} + {b}?", str(a + b), with_distractors(str(a + b), pool, rng))
        if skill == "lookup":
            return _lookup(rng)
        return _letters(skill, rng)

    def document(self, rng: random.Random) -> str:
        """Draw one pre-training document."""
        draw = rng.random()
        if draw < self.knobs.statement_share:
            return self._statements(rng)
        if draw < self.knobs.statement_share + self.knobs.sum_share:
            return " ".join(f"{a} + {b} = {a + b}." for a, b in (rng.choice(self.sums_seen) for _ in range(4)))
        skill = rng.choices(SKILLS, weights=self.knobs.skill_weights)[0]
        if skill == "lookup":
            return self._lookup_document(rng)
        question = self.question(skill, rng)
        return f"{question.prompt} {question.answer}."

    def warm_start_document(self, rng: random.Random) -> str:
        """Draw three or four pairs, restated three or four times.

        Keys and values come from one pool of nouns. Without a few hundred steps on these, a model of this size
        does not learn to look up in a context at all.
        """
        n = rng.randint(3, 4)
        pairs = list(zip(rng.sample(NOUNS, n), rng.choices(NOUNS, k=n), strict=True))
        rounds = [pairs] + [rng.sample(pairs, n) for _ in range(4 if n == 3 else 3)]
        return "".join(f" {k} {v}." for r in rounds for k, v in r)

    def _fact(self, rng: random.Random, people: Sequence[str]) -> Question:
        person = rng.choice(people)
        attribute = rng.choice(list(self.values))
        value = self.facts[person][attribute]
        choices = with_distractors(value, self.values[attribute], rng)
        return Question("", QUESTIONS[attribute].format(p=person), value, choices)

    def _statements(self, rng: random.Random) -> str:
        person = rng.choice(self.people)
        attributes = list(self.values)
        rng.shuffle(attributes)
        return " ".join(STATEMENTS[a].format(p=person, v=self.facts[person][a]) for a in attributes)

    def _lookup_document(self, rng: random.Random) -> str:
        n = rng.randint(3, 5)
        pairs = list(zip(rng.sample(NOUNS, n), rng.choices(NOUNS, k=n), strict=True))
        text = "".join(f" {k} {v}." for k, v in pairs)
        if rng.random() < self.knobs.restate_share:
            return text + "".join(f" {k} {v}." for k, v in rng.sample(pairs, n))
        return text + "".join(f" Question: What is {k}? Answer: {k} {v}." for k, v in rng.sample(pairs, 3))


def with_distractors(answer: str, pool: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """The answer and three others of the pool, shuffled."""
    choices = [*rng.sample([c for c in pool if c != answer], 3), answer]
    rng.shuffle(choices)
    return tuple(choices)


def _names(rng: random.Random, count: int) -> tuple[str, ...]:
    distinct = sorted({"".join(rng.choices(SYLLABLES, k=2)) for _ in range(count * 6)})
    return tuple(name.capitalize() for name in rng.sample(distinct, count))


def _split(rng: random.Random, values: Sequence[T], share: float) -> tuple[list[T], list[T]]:
    shuffled = list(values)
    rng.shuffle(shuffled)
    cut = int(len(shuffled) * share)
    return shuffled[:cut], shuffled[cut:]


def _letters(skill: str, rng: random.Random) -> Question:
    shown = rng.choices(LETTERS, k=rng.randint(3, 7))
    answer = shown if skill == "copy" else shown[::-1]
    choices = [answer]
    while len(choices) < 4:
        wrong = answer[:]
        i, j = rng.sample(range(len(wrong)), 2)
        wrong[i], wrong[j] = wrong[j], rng.choice(LETTERS)
        if wrong not in choices:
            choices.append(wrong)
    rng.shuffle(choices)
    text = f"{skill.capitalize()} the letters {' '.join(shown)}."
    return Question("", text, " ".join(answer), tuple(" ".join(c) for c in choices))


def _lookup(rng: random.Random) -> Question:
    keys, values = rng.sample(NOUNS, 4), rng.sample(NOUNS, 4)
    context = "".join(f" {k} {v}." for k, v in zip(keys, values, strict=True))
    asked = rng.randrange(4)
    order = rng.sample(values, 4)
    choices = tuple(f"{keys[asked]} {v}" for v in order)
    return Question(context, f"What is {keys[asked]}?", f"{keys[asked]} {values[asked]}", choices)
