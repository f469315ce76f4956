"""`benchmarks/speculation.py` with Qwen2.5-7B's shape and random weights, bf16, on one GPU: what a round costs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speculation import main

SHAPE = "--model random:qwen2.5-7b --dtype bfloat16 --device cuda --ranks 1024 --tokens 64"

if __name__ == "__main__":
    main([*SHAPE.split(), *sys.argv[1:]])
