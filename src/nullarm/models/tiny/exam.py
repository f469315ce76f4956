"""What an examination of a built-in model found, and what was wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Exam:
    """Accuracies in one form of asking.

    Attributes:
        name: The form.
        scores: Accuracy per skill.
        marks: Least accuracy wanted per skill.
    """

    name: str
    scores: Mapping[str, float]
    marks: Mapping[str, float]

    @property
    def short(self) -> list[str]:
        """Skills below their mark."""
        return [skill for skill, mark in self.marks.items() if self.scores[skill] < mark]

    def __str__(self) -> str:
        return f"{self.name}: " + ", ".join(f"{skill} {score:.2f}" for skill, score in self.scores.items())
