"""`benchmarks/train_lora.py` at Mistral-7B's shape, bf16, on one GPU."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_lora import main

SHAPE = "--model random:mistral-7b-v0.1 --dtype bfloat16 --rank 64 --batch-size 8 --length 256 --steps 20"

if __name__ == "__main__":
    main([*SHAPE.split(), *sys.argv[1:]])
