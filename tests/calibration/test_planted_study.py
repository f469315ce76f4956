"""The shipped planted-teacher study, whole: its placement is found, and the audit recovers the planted ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.local import LocalEngine
from nullarm.models.tasks.factory import make_task
from nullarm.models.tasks.planted import Planted


@pytest.mark.slow
def test_planted_placement_is_confirmed(tmp_path: Path) -> None:
    prepared = prepare("rank_mechanism_planted")
    store = lay_down(prepared, tmp_path / "study")
    assert not run(store, LocalEngine()).failed
    judgement = conclude(store).analysis.primary.judgement
    assert judgement.verdict == "CONFIRMED", judgement.reason

    task = make_task(prepared.study.parameters["task"])
    assert isinstance(task, Planted)
    truth = task.ranks()
    maps = [store.finished(c.id) for c in store.plan if c.stage == "allocate"]
    assert len(maps) == 4
    assert all(done is not None and done.json("allocation")["maps"]["audited"] == truth for done in maps)
