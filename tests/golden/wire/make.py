"""Write a blob of each codec, and the numbers that it gives, into this directory; those that are there stay.

python tests/golden/wire/make.py

A file is never made again: what was sent must be read for ever. A new codec, or a new version, is a new file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nullarm.protocols.kv_communication.geometry import HALVES, Stream
from nullarm.protocols.kv_communication.wire.codec import codec_of
from nullarm.protocols.kv_communication.wire.message import Message, decode, encode

HERE = Path(__file__).parent
CODECS: dict[str, dict[str, Any]] = {
    "v1_fp32": {"kind": "raw", "dtype": "float32"},
    "v1_bf16": {"kind": "raw", "dtype": "bfloat16"},
    "v1_fp16": {"kind": "raw", "dtype": "float16"},
    "v1_symmetric": {"kind": "symmetric", "bits": 4},
    "v1_asymmetric": {"kind": "asymmetric", "bits": 3, "group": 4},
    "v1_rotated": {"kind": "rotated", "bits": 2, "group": 8},
    "v1_kivi": {"kind": "kivi", "bits": 2, "group": 3, "window": 2},
    "v1_nf4": {"kind": "nf4", "group": 8},
    "v1_outlier": {"kind": "outlier", "bits": 1, "group": 8, "share": 0.05},
    "v1_huffman": {"kind": "symmetric", "bits": 3, "axis": "layer", "entropy": True},
}


def main() -> None:
    """Make what is missing. Files NAME.bin and NAME.safetensors, `positions` and `LAYER.HALF` in the latter."""
    rng = torch.Generator().manual_seed(0)
    positions = torch.tensor([0, 1, 3, 4, 7, 8, 9])
    streams = {Stream(k, half): torch.randn(2, 7, 10, generator=rng) for k in (1, 4) for half in HALVES}
    for name, data in CODECS.items():
        if not (HERE / f"{name}.bin").exists():
            blob = encode(Message(11, positions, streams), codec_of(data))
            (HERE / f"{name}.bin").write_bytes(blob)
            message = decode(blob)
            numbers = {f"{s.layer}.{s.half}": x.contiguous() for s, x in message.streams.items()}
            save_file({"positions": message.positions, **numbers}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()
