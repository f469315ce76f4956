from __future__ import annotations

import pytest

from nullarm.report.verdicts import VERDICTS, gloss, style, words

DECLARED = (
    "CONFIRMED",
    "DETECTED_BELOW_MARGIN",
    "EQUIVALENT",
    "HARMFUL",
    "INCONCLUSIVE",
    "NO_OP",
    "INVALID",
    "INSUFFICIENT_DATA",
)


@pytest.mark.parametrize("word", DECLARED)
def test_every_declared_verdict_has_a_meaning(word: str) -> None:
    assert gloss(word, "superiority")


def test_a_sign_stands_for_one_tone() -> None:
    tones: dict[str, set[str]] = {}
    for look in VERDICTS.values():
        tones.setdefault(look.sign, set()).add(look.tone)
    assert all(len(found) == 1 for found in tones.values())


def test_inconclusive_is_not_no_effect() -> None:
    assert "not evidence of no effect" in gloss("INCONCLUSIVE", "superiority")


def test_a_confirmed_non_inferiority_claims_no_effect() -> None:
    assert gloss("CONFIRMED", "non_inferiority") == "Not worse than the reference by the margin or more."


def test_an_unknown_word_is_shown_without_a_claim() -> None:
    assert style("SURPRISE").sign == "•"
    assert gloss("SURPRISE", "superiority") == ""
    assert words("NO_OP") == "NO OP"
