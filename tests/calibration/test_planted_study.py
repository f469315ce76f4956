"""The shipped planted-teacher study, whole: its placement is found, and the audit recovers the ranks that were planted."""

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
    poor = [name for name, rank in truth.items() if rank == task.low_rank]
    for cell in store.plan:
        if cell.stage == "allocate" and (done := store.finished(cell.id)):
            audited = done.json("allocation")["maps"]["audited"]
            assert max(audited[name] for name in poor) < min(audited[name] for name in truth if name not in poor)
