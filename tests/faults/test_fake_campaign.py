"""Workers are killed, the engine lies, loses sight of workers, says everything twice: the tables do not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill9 import cell_faults, table_faults

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.base import Engine, Job
from nullarm.engines.fake import FakeEngine, Faults
from nullarm.engines.inline import InlineEngine

OVERRIDES = ("resources.attempts=50", "parameters.chunk_seconds=0.01", "parameters.items=12")


def run_on(root: Path, engine: Engine) -> Path:
    store = lay_down(prepare("rehearsal", overrides=OVERRIDES), root)
    result = run(store, engine)
    assert result.failed == result.blocked == {}
    assert conclude(store).analysis.primary.judgement.verdict == "CONFIRMED"
    store.close()
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on(tmp_path_factory.mktemp("undisturbed") / "run", InlineEngine())


@pytest.mark.parametrize("seed", [0, 1])
def test_all_faults_together_change_nothing(tmp_path: Path, undisturbed: Path, seed: int) -> None:
    faults = Faults(seed=seed, kill=0.2, lie=0.15, vanish=0.15, repeat=0.2, kill_within_s=0.5)
    plan = prepare("rehearsal", overrides=OVERRIDES).plan
    assert {faults.draw(Job(tmp_path, c.id, 1))[0] for c in plan} == {"kill", "lie", "vanish", "repeat", None}
    root = run_on(tmp_path / "run", FakeEngine(faults))
    assert table_faults(root / "tables", undisturbed / "tables") == []
    assert cell_faults(root) == []
