"""Words with hidden classes: what the pair of models for KV communication is asked, and who knows what.

A word is two syllables of three letters, `zubkal`; its class has a one-syllable name. 32 first halves and 16 second
halves make all 512 words, and the classes are laid out so that neither half alone says anything about the class: every
first half occurs once with each class, every second half twice.

The words fall into four quarters by chance. A receiver knows the first two, a sharer all. Fusers train on the first
(known) and the third (unknown to the receiver); the last is held out from both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

SEED = 11
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
FIRST_HALVES, SECOND_HALVES, CLASSES = 32, 16, 16
LETTERS = ("A", "B", "C", "D")
"""Names of the four options of a question; chance is 0.25."""


@dataclass(frozen=True)
class Lexicon:
    """All words.

    Attributes:
        first_halves: First syllables of words.
        second_halves: Second syllables of words.
        classes: Names of the classes, syllables of no word.
        class_of: Class of each word.
        quarters: The words in four equal parts.
    """

    first_halves: tuple[str, ...]
    second_halves: tuple[str, ...]
    classes: tuple[str, ...]
    class_of: Mapping[str, str]
    quarters: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word, quarter by quarter."""
        return tuple(word for quarter in self.quarters for word in quarter)

    @property
    def fused_words(self) -> tuple[str, ...]:
        """Words that fusers train on: a quarter that the receiver knows and one that it does not."""
        return self.quarters[0] + self.quarters[2]

    @property
    def heldout_words(self) -> tuple[str, ...]:
        """Words that neither receiver nor fuser is taught."""
        return self.quarters[3]


@dataclass(frozen=True)
class WordQuestion:
    """Which of four options is the class of a word?

    Attributes:
        word: The word asked about.
        options: Four classes, in the order of `LETTERS`.
        answer: The letter of the right one.
    """

    word: str
    options: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What both models read; the completion is ` {answer}`."""
        listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, self.options, strict=True))
        return f"{self.word} {listed} ="

    @property
    def background_prompt(self) -> str:
        """Asks a sharer for what a receiver may lack; the completion is the class, ` {right_class}`."""
        return f"{self.prompt} is"

    @property
    def right_class(self) -> str:
        """The right option itself."""
        return self.options[LETTERS.index(self.answer)]

    def told(self, background: str) -> str:
        """What a receiver reads when it is told the class as text."""
        return f"{background} . {self.prompt}"


@cache
def lexicon() -> Lexicon:
    """The one lexicon of all built-in models and tasks."""
    rng = random.Random(SEED)
    syllables = [a + vowel + b for a in CONSONANTS for vowel in VOWELS for b in CONSONANTS if a != b]
    chosen = tuple(rng.sample(syllables, FIRST_HALVES + SECOND_HALVES + CLASSES))
    first, rest = chosen[:FIRST_HALVES], chosen[FIRST_HALVES:]
    second, classes = rest[:SECOND_HALVES], rest[SECOND_HALVES:]
    rows = rng.sample([i % CLASSES for i in range(FIRST_HALVES)], FIRST_HALVES)
    columns = rng.sample([j % CLASSES for j in range(SECOND_HALVES)], SECOND_HALVES)
    class_of = {
        a + b: classes[(row + column) % CLASSES]
        for a, row in zip(first, rows, strict=True)
        for b, column in zip(second, columns, strict=True)
    }
    words = rng.sample(list(class_of), len(class_of))
    quarter = len(words) // 4
    quarters = tuple(tuple(words[start : start + quarter]) for start in range(0, len(words), quarter))
    return Lexicon(first, second, classes, class_of, quarters)


def ask(word: str, rng: random.Random, right_class: str | None = None) -> WordQuestion:
    """Draw a question about a word: the wrong classes and the order of the options.

    Args:
        word: Any word of the lexicon.
        rng: What is drawn from.
        right_class: Taken for the word's class instead of its own, for a receiver that is told so.
    """
    words = lexicon()
    right = right_class or words.class_of[word]
    options = [*rng.sample([c for c in words.classes if c != right], len(LETTERS) - 1), right]
    rng.shuffle(options)
    return WordQuestion(word, tuple(options), LETTERS[options.index(right)])
