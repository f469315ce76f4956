from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_training import Toy, toy_fit, toy_settings

from nullarm.errors import ForeignStudyError

SCRIPT = Path(__file__).with_name("two_processes.py")


def in_two_processes(directory: Path, stop_after: int = 0, dropout: float = 0.2) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(directory), str(stop_after), str(dropout)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_bit_equal(tmp_path: Path) -> None:
    expected = in_two_processes(tmp_path / "undisturbed")
    stopped = in_two_processes(tmp_path / "cut", stop_after=1)
    assert stopped == {"stopped": "asked to stop; stopped after step 10 of 14"}
    resumed = in_two_processes(tmp_path / "cut")
    assert resumed["resumed"] == 10
    assert resumed["losses"] == expected["losses"]
    assert resumed["weights"] == expected["weights"]
    with pytest.raises(ForeignStudyError, match=r"got 'cell-1\|2 processes'"):
        toy_fit(tmp_path / "cut", Toy(), toy_settings(steps=14, batch_size=4))


@pytest.mark.slow
def test_two_processes_do_what_one_does_in_two_micro_batches(tmp_path: Path) -> None:
    both = in_two_processes(tmp_path / "two", dropout=0)
    settings = toy_settings(steps=14, batch_size=4, gradient_accumulation=2)
    alone = toy_fit(tmp_path / "one", Toy(dropout=0.0), settings)
    assert both["losses"] == pytest.approx(alone.losses, rel=1e-5)
