"""`benchmarks/kv_wire.py` runs, and its figures are of the blobs that it made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_the_benchmark_of_the_wire(tmp_path: Path) -> None:
    options = ["--tokens=16", "--rounds=1", "--no-peers", "--codecs", "int8", "asymmetric3", "int4_huffman"]
    command = [sys.executable, str(ROOT / "benchmarks" / "kv_wire.py"), f"--json={tmp_path / 'out.json'}", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    header = 8 * (44 + 48 * 4 + 4) / (48 * 2 * 16 * 64)
    bits = {line.split()[0]: line.split()[-2:] for line in done.stdout.splitlines()[3:7]}
    assert bits["int8"] == [f"{8 + header + 32 / 1024:.3f}"] * 2
    assert bits["asymmetric3"] == [f"{4 + header:.3f}"] * 2
    assert float(bits["int4_huffman"][0]) < 4
    assert bits["int4_huffman"][1] == "—"
    split = json.loads((tmp_path / "out.json").read_text())["split"]
    assert split["int8"].keys() >= {"quantise", "pack", "serialise", "CRC", "unpack", "dequantise"}
