"""MMLU-Redux 2.0: 100 questions of each of MMLU's subjects, annotated again (Gema et al. 2024, arXiv:2406.04127)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nullarm.errors import DatasetError
from nullarm.models.tasks.base import Item, Split
from nullarm.models.tasks.multiple_choice import MultipleChoice, lettered
from nullarm.models.tasks.rows import Row, text_field

SUBJECTS = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security
    conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
    high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
    high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
    logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
    moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions
    """.split()
)
KEPT = ("ok", "bad_question_clarity", "bad_options_clarity", "multiple_correct_answers")
CORRECTED = "wrong_groundtruth"
LEFT_OUT = ("no_correct_answer", "expert")


@dataclass(frozen=True)
class MmluRedux(MultipleChoice):
    """MMLU-Redux 2.0, as the C2C evaluation reads its annotations, so that the figures compare.

    Rows without a right answer (`no_correct_answer`, `expert`) are left out; `wrong_groundtruth` has the annotators'
    answer, and is left out where they name no choice (the original then asks for the wrong one); all others, unclear
    ones among them, keep MMLU's answer. There is one published split: dev is a random part of it, which test loses.
    There is no training split.

    Attributes:
        dev_items: Items of the dev split.
    """

    name: ClassVar[str] = "mmlu_redux"
    hub_id: ClassVar[str] = "edinburgh-dawg/mmlu-redux-2.0"
    subsets: ClassVar[tuple[str, ...]] = SUBJECTS
    published: ClassVar[Mapping[Split, str]] = {"dev": "test", "test": "test"}
    sizes: ClassVar[Mapping[Split, int]] = {}
    mean_tokens: ClassVar[int] = 190
    dev_items: int = 200

    def read_row(self, row: Row, where: str, place: str) -> Item | None:
        """The question with its four choices, unless nobody knows the answer."""
        answer = _answer(row, where)
        if answer is None:
            return None
        return lettered(f"{self.name}/{place}", text_field(row, "question", where), row.get("choices"), answer, where)


def _answer(row: Row, where: str) -> int | None:
    """Number of the right choice, from 0; a correction is written as a number or as a letter."""
    error = text_field(row, "error_type", where)
    if error in LEFT_OUT:
        return None
    if error == CORRECTED:
        correction = str(row.get("correct_answer")).strip()
        return "ABCD0123".index(correction) % 4 if correction in tuple("ABCD0123") else None
    if error not in KEPT:
        raise DatasetError(f"{where}: unknown error_type", value=error, valid=(*KEPT, CORRECTED, *LEFT_OUT))
    answer = row.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise DatasetError(f"{where}: the answer is no whole number", value=answer, valid="0 to 3")
    return answer
