"""`benchmarks/residual_capture.py` at Qwen2.5-7B's shape, bf16, on one GPU."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from residual_capture import main

SHAPE = "--shape qwen2.5-7b --layers 28 --dtype bfloat16 --device cuda --prompts 8 --tokens 128"

if __name__ == "__main__":
    main([*SHAPE.split(), *sys.argv[1:]])
