"""What the models of the word pair are trained on: words, some of which are to be predicted."""

from __future__ import annotations

import random
from typing import Any

from nullarm.models.tasks.base import IGNORED
from nullarm.models.tiny.word_recipe import WordRecipe
from nullarm.models.tiny.words import LETTERS, WordQuestion, ask, lexicon

Document = list[tuple[str, bool]]
"""Words of a text, each with whether it is to be predicted."""

END = ""
"""Stands for the end of text."""


def answered(prompt: str, answer: str) -> Document:
    """A prompt, then its answer and the end of text, which are trained."""
    return [*_untrained(prompt), (answer, True), (END, True)]


def scan(question: WordQuestion, rng: random.Random, lead: str = "") -> Document:
    """Options up to the right one, then a full stop, or all four and `=`; trained is what follows an option.

    In one document of five no option is right, so that each of the five endings is as likely, and the fourth option
    has to be looked at like the others. So a model learns to compare each option with the word where the option
    stands. Without it some seeds do and some do not, and what a fuser can hand over differs from seed to seed.
    """
    right = question.right_class
    none = rng.random() < 1 / (len(LETTERS) + 1)
    other = rng.choice([c for c in lexicon().classes if c not in question.options])
    document = _untrained(f"{lead}{question.word}")
    for letter, option in zip(LETTERS, question.options, strict=True):
        document += [(letter, letter != LETTERS[0]), (other if none and option == right else option, False)]
        if option == right and not none:
            return [*document, (".", True)]
    return [*document, ("=", True)]


class Documents:
    """Documents of one recipe, drawn from one generator."""

    def __init__(self, recipe: WordRecipe, rng: random.Random) -> None:
        self.recipe, self.rng = recipe, rng
        self.known = [word for quarter in recipe.known_quarters for word in lexicon().quarters[quarter]]

    def draw(self, step: int) -> Document:
        """One document for a training step, counted from 1."""
        recipe, rng = self.recipe, self.rng
        if step <= recipe.warm_start_steps:
            return self._fact()
        if rng.random() < recipe.background_share:
            question = ask(rng.choice(self.known), rng)
            return answered(question.background_prompt, question.right_class)
        if rng.random() < recipe.told_share:
            return self._told()
        question = ask(rng.choice(self.known), rng)
        if rng.random() < recipe.scan_share:
            return scan(question, rng)
        return answered(question.prompt, question.answer)

    def _fact(self) -> Document:
        word = self.rng.choice(self.known)
        return answered(f"{word} is", lexicon().class_of[word])

    def _told(self) -> Document:
        """Any word, and any class for it, drawn independently: nothing is learned about the word."""
        told = self.rng.choice(lexicon().classes)
        question = ask(self.rng.choice(lexicon().words), self.rng, told)
        if self.rng.random() < self.recipe.scan_share:
            return scan(question, self.rng, f"{told} . ")
        return answered(question.told(told), question.answer)


class Encoder:
    """Token ids and labels of documents, each different word tokenised once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids_of: dict[str, list[int]] = {END: [tokenizer.eos_token_id]}

    def __call__(self, document: Document) -> tuple[list[int], list[int]]:
        """Ids with the beginning of text, and labels, -100 where nothing is trained."""
        ids, labels = [self.tokenizer.bos_token_id], [IGNORED]
        for word, trained in document:
            own = self._ids(word)
            ids += own
            labels += own if trained else [IGNORED] * len(own)
        return ids, labels

    def _ids(self, word: str) -> list[int]:
        if word not in self.ids_of:
            self.ids_of[word] = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return self.ids_of[word]


def _untrained(text: str) -> Document:
    return [(word, False) for word in text.split()]
