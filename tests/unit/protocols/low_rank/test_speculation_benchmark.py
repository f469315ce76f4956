"""`benchmarks/speculation.py` runs, and in fp32 every way writes the verifier's text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def test_the_benchmark_of_speculation(tmp_path: Path) -> None:
    options = ["--rounds=1", "--tokens=8", "--prompts=2", "--ranks", "16", "--draft-lengths", "3"]
    command = [sys.executable, str(ROOT / "benchmarks" / "speculation.py"), f"--json={tmp_path / 'out.json'}", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    ways = json.loads((tmp_path / "out.json").read_text())["ways"]
    assert list(ways) == ["generate", "alone", "drafter 16", "assisted 16 γ=3", "ours 16 γ=3"]
    assert all(f"\n{name} " in done.stdout for name in ways)
    assert {ways[name]["same"] for name in ways if name != "drafter 16"} == {2}
    ours = ways["ours 16 γ=3"]
    alpha, c = ours["alpha"], ours["cost_ratio"]
    assert ours["predicted"] == pytest.approx((1 - alpha**4) / ((1 - alpha) * (3 * c + 1)))
    assert 1 <= ours["tokens_per_round"] <= 4
    assert ways["generate"]["ratio"] == 1
