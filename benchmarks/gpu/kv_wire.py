"""`benchmarks/kv_wire.py` at 32,768 tokens on one GPU; int8 and int4 kernels should take 2 × a device copy at most."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kv_wire import main

SHAPE = "--device cuda --tokens 32768 --rounds 9"

if __name__ == "__main__":
    main([*SHAPE.split(), *sys.argv[1:]])
