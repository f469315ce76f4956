"""`benchmarks/low_rank.py` at Qwen2.5-7B's shape, bf16, on one GPU."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from low_rank import main

SHAPE = "--shape qwen2.5-7b --layers 28 --dtype bfloat16 --device cuda --tokens 32768 --rounds 10 --repeats 20"

if __name__ == "__main__":
    main([*SHAPE.split(), *sys.argv[1:]])
