"""The schedule of faults. What the faults do is in the contract suite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nullarm.engines.base import Job
from nullarm.engines.fake import Faults
from nullarm.errors import UsageError

ALL = Faults(seed=7, kill=0.1, lie=0.2, vanish=0.3, repeat=0.2)


def job(number: int, attempt: int = 1, root: str = "/run") -> Job:
    return Job(Path(root), f"cell-{number}", attempt)


def test_the_schedule_follows_from_the_seed_the_cell_and_the_attempt_alone() -> None:
    jobs = [job(n, a) for n in range(20) for a in range(1, 4)]
    first = [ALL.draw(j)[0] for j in jobs]
    assert [ALL.draw(j)[0] for j in jobs] == first
    assert [ALL.draw(job(n, a, "/elsewhere"))[0] for n in range(20) for a in range(1, 4)] == first
    assert [Faults(seed=8, kill=0.1, lie=0.2, vanish=0.3, repeat=0.2).draw(j)[0] for j in jobs] != first


def test_faults_are_as_frequent_as_they_were_asked_for() -> None:
    drawn = Counter(ALL.draw(job(n))[0] for n in range(4000))
    shares = {fault: drawn[fault] / 4000 for fault in ("kill", "lie", "vanish", "repeat", None)}
    wanted = {"kill": 0.1, "lie": 0.2, "vanish": 0.3, "repeat": 0.2, None: 0.2}
    assert all(abs(shares[fault] - share) < 0.03 for fault, share in wanted.items())


def test_without_faults_there_are_none() -> None:
    assert {Faults().draw(job(n))[0] for n in range(200)} == {None}
    assert {Faults(lie=1.0).draw(job(n))[0] for n in range(200)} == {"lie"}


@pytest.mark.parametrize("wrong", [{"kill": -0.1}, {"kill": 0.6, "lie": 0.6}, {"repeat": 1.5}])
def test_impossible_probabilities_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"the probabilities of the faults; got .*; valid: each ≥ 0, together ≤ 1"):
        Faults(**wrong)  # type: ignore[arg-type]
