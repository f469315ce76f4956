"""A teacher of unequal ranks is found; its homogeneous twin gives CONFIRMED no more often than α."""

from __future__ import annotations

from collections import Counter

from micro_students import MODULES, MicroStudy, judge_studies

from nullarm.stats.verdict import Verdict

ALPHA = 0.05
STUDIES = 200


def test_homogeneous_twin_is_confirmed_no_more_often_than_alpha() -> None:
    judgements = judge_studies(MicroStudy([4] * MODULES, target_noise=1.2), STUDIES, seed=0)
    counts = Counter(j.verdict for j in judgements)
    tested = STUDIES - counts[Verdict.INVALID]
    assert tested >= 0.9 * STUDIES, counts  # the twin is a test only where its maps differ by chance
    error = (ALPHA * (1 - ALPHA) / tested) ** 0.5
    assert counts[Verdict.CONFIRMED] / tested <= ALPHA + 3 * error, counts


def test_unequal_teacher_is_confirmed() -> None:
    judgements = judge_studies(MicroStudy([1, 8] * (MODULES // 2), target_noise=0.3), 40, seed=1)
    assert Counter(j.verdict for j in judgements)[Verdict.CONFIRMED] >= 38
