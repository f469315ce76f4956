from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_without_notice_at_random_moments_it_ends_as_an_undisturbed_run(tmp_path: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(kills), "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    undisturbed = outcome["undisturbed"]
    assert outcome["killed"] == kills
    assert len(undisturbed["losses"]) == 60
    assert any(run["resumed"] for run in outcome["finished"])
    for run in outcome["finished"]:
        assert run["losses"] == undisturbed["losses"]
        assert run["weights"] == undisturbed["weights"]
        assert run["skipped"] == [], "a killed write leaves no half checkpoint under a checkpoint's name"
