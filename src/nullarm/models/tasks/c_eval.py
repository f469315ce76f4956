"""C-Eval: Chinese examinations in 52 subjects (Huang et al. 2023, arXiv:2305.08322)."""

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
    accountant advanced_mathematics art_studies basic_medicine business_administration
    chinese_language_and_literature civil_servant clinical_medicine college_chemistry college_economics
    college_physics college_programming computer_architecture computer_network discrete_mathematics
    education_science electrical_engineer environmental_impact_assessment_engineer fire_engineer high_school_biology
    high_school_chemistry high_school_chinese high_school_geography high_school_history high_school_mathematics
    high_school_physics high_school_politics ideological_and_moral_cultivation law legal_professional logic
    mao_zedong_thought marxism metrology_engineer middle_school_biology middle_school_chemistry
    middle_school_geography middle_school_history middle_school_mathematics middle_school_physics
    middle_school_politics modern_chinese_history operating_system physician plant_protection
    probability_and_statistics professional_tour_guide sports_science tax_accountant teacher_qualification
    urban_and_rural_planner veterinary_medicine
    """.split()
)
COLUMNS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class CEval(MultipleChoice):
    """C-Eval. Test is the published `val` split, for the answers of the published test split are secret.

    Dev is the published `dev` split, five worked examples per subject. There is no training split.
    """

    name: ClassVar[str] = "c_eval"
    hub_id: ClassVar[str] = "ceval/ceval-exam"
    subsets: ClassVar[tuple[str, ...]] = SUBJECTS
    published: ClassVar[Mapping[Split, str]] = {"dev": "dev", "test": "val"}
    sizes: ClassVar[Mapping[Split, int]] = {"dev": 260, "test": 1346}
    mean_tokens: ClassVar[int] = 150

    def read_row(self, row: Row, where: str, place: str) -> Item:
        """The question with the choices of its four columns. Its own id starts anew in every split and is not used."""
        options = [text_field(row, column, where) for column in COLUMNS]
        answer = text_field(row, "answer", where)
        if answer not in COLUMNS:
            raise DatasetError(f"{where}: the answer is none of the choices", value=answer, valid=COLUMNS)
        question = text_field(row, "question", where)
        return lettered(f"{self.name}/{place}", question, options, COLUMNS.index(answer), where)
