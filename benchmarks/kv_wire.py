"""The wire: encoding and decoding a key-value cache, against a copy of it, and against the library's quantised caches.

    python benchmarks/kv_wire.py                       # the cache of Qwen2.5-0.5B, 4096 tokens, bf16, CPU, one thread
    python benchmarks/kv_wire.py --tokens 512 --rounds 3 --codecs int8 asymmetric4
    python benchmarks/gpu/kv_wire.py                   # the same on a GPU, 32,768 tokens

Options: --tokens --dtype --device --rounds --codecs NAME... --no-peers --json FILE. Numbers are normal, keys with a
channel far from 0.

`copy`, the floor, copies the cache's tensors once. A codec's line is `encode` (cache to bytes) and `decode` (bytes to a
cache of the same dtype), or what `HQQ` and `quanto` of transformers' QuantizedCache do to quantise the same tensors
layer by layer and to give them back; these make no bytes and check nothing. GB/s are of the cache as it was given.
Rounds alternate between the ways; figures are medians over rounds of process CPU seconds with one thread, or on a GPU
of wall seconds until it is idle. Bits are of the whole blob, a number; theory is the formula of `wire.size`. The split
has the parts of one encoding and decoding. On a GPU the kernels alone, from numbers to packed codes and back, are
measured too: their goal is 2 × a device copy at most, for int8 and int4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from nullarm.models.shapes import SHAPES
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.protocols.kv_communication.wire import affine, message, normal_float
from nullarm.protocols.kv_communication.wire.codec import (
    NAMED,
    Asymmetric,
    Codec,
    Kivi,
    NormalFloat,
    Outlier,
    Rotated,
    Symmetric,
)
from nullarm.protocols.kv_communication.wire.message import Message, decode, encode
from nullarm.protocols.kv_communication.wire.scheme import Shape
from nullarm.protocols.kv_communication.wire.schemes import scheme
from nullarm.protocols.kv_communication.wire.size import message_bytes

CODECS: dict[str, Codec] = {
    **NAMED,
    **{f"asymmetric{bits}": Asymmetric(bits=bits) for bits in (8, 4, 3, 2, 1)},
    "rotated4": Rotated(bits=4),
    "kivi2": Kivi(bits=2),
    "nf4": NormalFloat(),
    "outlier4": Outlier(bits=4),
    "int4_huffman": Symmetric(bits=4, entropy=True),
}
PEERS = (("HQQ", 8, 1), ("HQQ", 4, 1), ("HQQ", 2, 1), ("Quanto", 4, -1), ("Quanto", 2, -1))
"""Backend, bits and axis; groups are of 32, as those of our codecs."""
MISSING = "not installed: pip install -e '.[peers]'"
GOAL = 2.0
"""Most that the kernels of int8 and int4 may take on a GPU, × a device copy."""

Way = tuple[Callable[[], Any], Callable[[Any], Any]]
"""There, and back."""


def random_cache(options: argparse.Namespace) -> tuple[Geometry, Message]:
    """A whole cache of the shape, on the device."""
    config = SHAPES["qwen2.5-0.5b"].config
    geometry = Geometry(
        config["num_hidden_layers"],
        config["num_key_value_heads"],
        config["hidden_size"] // config["num_attention_heads"],
    )
    rng, streams = torch.Generator().manual_seed(0), {}
    for stream in geometry.streams:
        x = torch.randn(geometry.heads, options.tokens, geometry.head_dim, generator=rng)
        if stream.half == "key":
            x[..., 0] += 20
        streams[stream] = x.to(options.device, getattr(torch, options.dtype))
    return geometry, Message(options.tokens, torch.arange(options.tokens), streams)


def ours(codec: Codec, cache: Message, options: argparse.Namespace) -> Way:
    """Encode and decode."""
    dtype = getattr(torch, options.dtype)
    return (lambda: encode(cache, codec)), (lambda blob: decode(blob, device=options.device, dtype=dtype))


def kernels(codec: Symmetric, cache: Message) -> Way:
    """From numbers to packed codes on the device, and back into numbers, no bytes made."""
    numbers = torch.stack(list(cache.streams.values()))
    back = torch.empty_like(numbers)
    block = scheme(codec, Shape(*numbers.shape[1:]), "key", codec.bits)
    return (lambda: block.encode(numbers)), (lambda parts: block.decode(parts, back))


def peer(backend: str, bits: int, axis: int, cache: Message) -> Way:
    """Quantisation of every layer by the library's cache.

    Raises:
        ImportError: The backend is not installed.
    """
    from transformers import cache_utils

    layer = getattr(cache_utils, f"{backend}QuantizedLayer")(
        nbits=bits, axis_key=axis, axis_value=axis, q_group_size=32
    )
    tensors = [x[None].contiguous() for x in cache.streams.values()]
    layer.lazy_initialization(tensors[0], tensors[0])
    return (
        lambda: [layer._quantize(x, axis) for x in tensors],
        lambda found: [layer._dequantize(x) for x in found],
    )


def copies(cache: Message) -> Way:
    """The floor: every tensor read and written once."""
    tensors = list(cache.streams.values())
    there = [torch.empty_like(x) for x in tensors]

    def copy(*_: Any) -> None:
        for x, to in zip(tensors, there, strict=True):
            to.copy_(x)

    return copy, copy


def ways(cache: Message, options: argparse.Namespace) -> Iterator[tuple[str, Way | None]]:
    """Every way by its name; None for a library that is not installed."""
    yield "copy", copies(cache)
    for name in options.codecs:
        yield name, ours(CODECS[name], cache, options)
    if options.device != "cpu":
        for name in ("int8", "int4"):
            yield f"{name} kernels", kernels(CODECS[name], cache)  # type: ignore[arg-type]
    for backend, bits, axis in PEERS if options.peers else ():
        try:
            yield f"{backend}{bits}", peer(backend, bits, axis, cache)
        except ImportError:
            yield f"{backend}{bits}", None


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of one call, and what it gave: wall on a GPU, until it is idle; else CPU seconds of this process."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    _idle(device)
    started = clock()
    found = work()
    _idle(device)
    return clock() - started, found


def measure(found: Mapping[str, Way | None], options: argparse.Namespace) -> dict[str, tuple[float, float] | None]:
    """Median seconds there and back of every way that is installed; the first round of each is not counted."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for round_ in range(options.rounds + 1):
        for name, way in found.items():
            if way is not None:
                there, made = seconds(way[0], options.device)
                back, _ = seconds(lambda way=way, made=made: way[1](made), options.device)  # type: ignore[misc]
                if round_:
                    times[name].append((there, back))
    return {
        name: (statistics.median(t for t, _ in times[name]), statistics.median(b for _, b in times[name]))
        if name in times
        else None
        for name in found
    }


class Split:
    """Seconds inside of functions, while `timed`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Clocks around the parts of encoding and decoding."""
        with ExitStack() as stack:
            for owner in (affine, normal_float):
                stack.enter_context(mock.patch.object(owner, "pack", self._clocked("pack", owner.pack)))
                stack.enter_context(mock.patch.object(owner, "unpack", self._clocked("unpack", owner.unpack)))
            for name in ("_encode_block", "_decode_block", "_sealed", "_opened"):
                stack.enter_context(mock.patch.object(message, name, self._clocked(name, getattr(message, name))))
            stack.enter_context(mock.patch.object(zlib, "crc32", self._clocked("crc", zlib.crc32)))
            yield

    def _clocked(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            took, found = seconds(lambda: work(*given), self.device)
            self.seconds[name] += took
            return found

        return run


def split(codec: Codec, cache: Message, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the parts of one encoding and one decoding."""
    there, back = ours(codec, cache, options)
    encoding, decoding = Split(options.device), Split(options.device)
    with encoding.timed():
        blob = there()
    with decoding.timed():
        back(blob)
    e, d = encoding.seconds, decoding.seconds
    return {
        "quantise": e["_encode_block"] - e["pack"],
        "pack": e["pack"],
        "serialise": e["_sealed"] - e["crc"],
        "CRC": e["crc"],
        "check CRC": d["crc"],
        "read": d["_opened"] - d["crc"],
        "unpack": d["unpack"],
        "dequantise": d["_decode_block"] - d["unpack"],
    }


def print_table(
    options: argparse.Namespace, geometry: Geometry, cache: Message, times: Mapping[str, tuple[float, float] | None]
) -> None:
    numbers = sum(x.numel() for x in cache.streams.values())
    given = sum(x.nbytes for x in cache.streams.values()) / 1e9
    kind = "CPU s" if options.device == "cpu" else "wall s"
    print(f"{len(cache.streams)} streams × {geometry.heads} heads × {options.tokens} tokens × {geometry.head_dim},")
    machine = f"{options.device}, torch {torch.__version__}"
    print(f"{given:.3f} GB in {options.dtype}, {machine}, {kind}, medians of {options.rounds}")
    print(
        f"{'way':<14}{'encode':>9}{'decode':>9}{'GB/s':>8}{'GB/s':>8}{'× copy':>8}{'× copy':>8}{'bits':>8}{'theory':>8}"
    )
    floor = times["copy"] or (float("nan"),) * 2
    for name, both in times.items():
        if both is None:
            print(f"{name:<14}  {MISSING}")
            continue
        figures = [*both, *(given / t for t in both), *(t / f for t, f in zip(both, floor, strict=True))]
        line = f"{name:<14}{both[0]:>9.4f}{both[1]:>9.4f}" + "".join(f"{x:>8.2f}" for x in figures[2:])
        if name in options.codecs:
            line += _bits(geometry, name, cache, numbers)
        elif name.endswith("kernels"):
            line += f"  at most {GOAL:g} × a copy: {'holds' if max(figures[4:]) <= GOAL else 'does not hold'}"
        print(line)


def _bits(geometry: Geometry, name: str, cache: Message, numbers: int) -> str:
    n = cache.tokens
    length = len(encode(cache, CODECS[name]))
    formula = message_bytes(geometry, CODECS[name], streams=geometry.streams, tokens=n, sent=n, contiguous=True)
    if formula is not None and formula != length:
        raise SystemExit(f"{name}: a blob of {length} bytes, {formula} by the formula")
    return f"{8 * length / numbers:>8.3f}" + (f"{8 * formula / numbers:>8.3f}" if formula else f"{'—':>8}")


def print_split(name: str, parts: Mapping[str, float]) -> None:
    print(f"{name:<14}" + "  ".join(f"{part} {1e3 * s:.1f}" for part, s in parts.items()) + "  ms")


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and print tables."""
    options = arguments(given)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    geometry, cache = random_cache(options)
    times = measure(dict(ways(cache, options)), options)
    print_table(options, geometry, cache, times)
    splits = {name: split(CODECS[name], cache, options) for name in options.codecs}
    for name, parts in splits.items():
        print_split(name, parts)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        figures = {"seconds": times, "split": splits, "torch": torch.__version__}
        options.json.write_text(json.dumps({**settings, **figures}, indent=1) + "\n")


def _idle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codecs", nargs="+", choices=tuple(CODECS), default=list(CODECS))
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the library's caches out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
