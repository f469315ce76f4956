"""The words a verdict may be: a sign, a tone of colour, and what the word permits one to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Tone = Literal["found", "null", "harm", "open", "void"]
"""found: an effect · null: a claimed null · harm: the wrong direction · open: undecided · void: no claim possible."""

Question = Literal["superiority", "non_inferiority", "equivalence", "difference"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a verdict looks. Sign and word carry the meaning without the colour."""

    sign: str
    tone: Tone
    gloss: str


VERDICTS: Mapping[str, Style] = {
    "CONFIRMED": Style("✓", "found", "The effect is there, and it is large enough to matter."),
    "DETECTED_BELOW_MARGIN": Style("△", "found", "There is an effect, but it is smaller than the declared margin."),
    "DIFFERENT": Style("≠", "found", "The arms differ."),
    "EQUIVALENT": Style("≈", "null", "Any effect lies within the declared margin: this null may be claimed."),
    "HARMFUL": Style("▼", "harm", "There is an effect, in the wrong direction."),
    "INCONCLUSIVE": Style("?", "open", "The data cannot tell an effect from none. This is not evidence of no effect."),
    "NO_OP": Style("∅", "void", "The treatment changed nothing, so there is nothing to compare."),
    "UNDERTRAINED": Style("✕", "void", "The probe did not pass its gate; nothing that follows would mean anything."),
    "INVALID": Style("✕", "void", "No claim may be made: a control failed, or data are contaminated or incomplete."),
    "INSUFFICIENT_DATA": Style("…", "void", "Too few data for any claim."),
}

NON_INFERIORITY: Mapping[str, str] = {
    "CONFIRMED": "Not worse than the reference by the margin or more.",
    "HARMFUL": "Worse than the reference by the margin or more.",
    "INCONCLUSIVE": "The data cannot rule out a loss as large as the margin.",
}
"""What a word permits when the question was whether the treatment is no worse."""

_OTHER = Style("•", "open", "")


def style(verdict: str) -> Style:
    """How to show `verdict`; a word that is not known is shown as it is, in the tone of an open question."""
    return VERDICTS.get(verdict, _OTHER)


def gloss(verdict: str, question: Question) -> str:
    """What `verdict` permits one to say; empty when the word is not known."""
    special = NON_INFERIORITY.get(verdict) if question == "non_inferiority" else None
    return special or style(verdict).gloss


def words(verdict: str) -> str:
    """`DETECTED_BELOW_MARGIN` → `DETECTED BELOW MARGIN`."""
    return verdict.replace("_", " ")
