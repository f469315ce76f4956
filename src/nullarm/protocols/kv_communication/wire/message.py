"""Messages: parts of a key-value cache as one blob of bytes, and back. Layout: docs/reference/wire-format.md.

Nothing but the blob is needed to read it. `wire.size` has the length of a blob without making it.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.geometry import HALVES, Stream
from nullarm.protocols.kv_communication.wire import entropy
from nullarm.protocols.kv_communication.wire.codec import Codec, widths
from nullarm.protocols.kv_communication.wire.header import (
    Header,
    Row,
    bitmap_of,
    damaged,
    positions_of,
    read_header,
    refuse_foreign,
)
from nullarm.protocols.kv_communication.wire.scheme import Scheme, Shape
from nullarm.protocols.kv_communication.wire.schemes import scheme

_CACHED_NUMBERS = 2**18
"""Numbers of a pass on a CPU: what is made of them on the way stays in its cache."""
_CRC_BYTES = 4


@dataclass(frozen=True)
class Message:
    """Keys and values of some tokens in some layers.

    Attributes:
        tokens: Length of the sharer's sequence.
        positions: Which of its tokens these are, int64 [n], ascending.
        streams: Their keys or values [heads, n, head_dim] by layer and half.
    """

    tokens: int
    positions: Tensor
    streams: Mapping[Stream, Tensor]


def encode(message: Message, codec: Codec, bits: Mapping[Stream, int] | None = None) -> bytes:
    """The message on the wire. One without streams says nothing of positions either.

    Args:
        message: What to send, on any device.
        codec: How to write the numbers.
        bits: Width of the codes by stream, instead of the codec's own.

    Raises:
        MessageError: A stream has NaN or infinity, or numbers that the codec's floating-point parts cannot hold.
        ValueError: Shapes, positions or widths do not go together.
    """
    return encode_many([message], codec, bits)[0]


def encode_many(messages: Sequence[Message], codec: Codec, bits: Mapping[Stream, int] | None = None) -> list[bytes]:
    """`encode` of each message; those of the same shape are quantised together. Raises what `encode` raises."""
    headers = [_header(message, codec, bits) for message in messages]
    blobs: list[bytes] = [b""] * len(messages)
    for alike in _groups([(h.rows, h.heads, h.head_dim, h.sent) for h in headers]):
        bodies: list[list[Any]] = [[headers[k].pack()] for k in alike]
        streams = iter(headers[alike[0]].rows)
        for block, count in _blocks(headers[alike[0]]):
            names = [next(streams).stream for _ in range(count)]
            rows = [messages[k].streams[name] for k in alike for name in names]
            parts = _encode_block(block, rows, names)
            for body, *of_message in zip(bodies, *(p.reshape(len(alike), -1) for p in parts), strict=True):
                body.extend(of_message)
                if getattr(codec, "entropy", False):
                    body[-1:] = entropy.compress(body[-1])
        for k, body in zip(alike, bodies, strict=True):
            blobs[k] = _sealed(body)
    return blobs


def decode(blob: bytes, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Message:
    """The message of a blob, its numbers as the codec gives them back.

    Args:
        blob: What `encode` gave, here or elsewhere.
        device: Where the streams are put, still packed; positions stay on the CPU.
        dtype: Of the streams.

    Raises:
        MessageError: The blob is truncated, damaged or of another version.
    """
    return decode_many([blob], device=device, dtype=dtype)[0]


def decode_many(
    blobs: Sequence[bytes], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Message]:
    """`decode` of each blob; those of the same shape are read together. Raises what `decode` raises."""
    opened = [_opened(blob) for blob in blobs]
    headers = [header for header, _ in opened]
    streams: list[dict[Stream, Tensor]] = [{} for _ in blobs]
    for alike in _groups([replace(h, tokens=0, first=0, bitmap=None) for h in headers]):
        header, bodies = headers[alike[0]], [opened[k][1] for k in alike]
        rows = iter(header.rows)
        for (block, count), parts in zip(_blocks(header), zip(*bodies, strict=True), strict=True):
            pieces = list(zip(*parts, strict=True))
            numbers = _decode_block(block, pieces, len(alike) * count, torch.device(device), dtype)
            names = [next(rows).stream for _ in range(count)]
            for k, of_message in zip(alike, numbers.view(len(alike), count, *block.shape), strict=True):
                streams[k].update(zip(names, of_message, strict=True))
    return [
        Message(header.tokens, torch.from_numpy(positions_of(header)), dict(sorted(found.items())))
        for header, found in zip(headers, streams, strict=True)
    ]


def _header(message: Message, codec: Codec, bits: Mapping[Stream, int] | None) -> Header:
    """Of a message that is to be sent."""
    own = widths(codec)
    width = bits or dict.fromkeys(message.streams, getattr(codec, "bits", own[0]))
    rows = tuple(sorted(Row(width[s], HALVES.index(s.half), s.layer) for s in message.streams))
    if wrong := sorted({row.bits for row in rows} - set(own)):
        raise ValueError(f"codec {codec.kind} has codes of {own} bits, not {wrong}")
    shapes = {tuple(x.shape) for x in message.streams.values()}
    n = len(message.positions)
    if len(shapes) > 1 or any(len(shape) != 3 or shape[1] != n for shape in shapes):
        raise ValueError(f"streams of {sorted(shapes)} are not all [heads, {n} tokens, head_dim]")
    if not rows:
        return Header(codec, 0, 0, (), message.tokens, 0, 0, None)
    heads, _, head_dim = shapes.pop()
    positions = message.positions.numpy(force=True)
    if n and (positions[0] < 0 or positions[-1] >= message.tokens or (np.diff(positions) < 1).any()):
        raise ValueError(f"positions are not ascending within {message.tokens} tokens")
    first = int(positions[0]) if n else 0
    if n and positions[-1] - first >= n:
        return Header(codec, heads, head_dim, rows, message.tokens, n, 0, bitmap_of(positions, message.tokens))
    return Header(codec, heads, head_dim, rows, message.tokens, n, first, None)


def _blocks(header: Header) -> Iterator[tuple[Scheme[Any], int]]:
    """How each block is written, and how many streams it has."""
    shape = Shape(header.heads, header.sent, header.head_dim)
    for half, bits, streams in header.blocks():
        yield scheme(header.codec, shape, half, bits), streams


def _encode_block(block: Scheme[Any], rows: Sequence[Tensor], names: Sequence[Stream]) -> list[np.ndarray]:
    """Bytes [row, bytes] of each part of the block's rows; names repeat message by message."""
    found = [torch.empty((len(rows), count), dtype=dtype, device=rows[0].device) for dtype, count in block.parts]
    with torch.no_grad():
        for cut in _cuts(len(rows), block.shape, rows[0].device):
            for whole, part in zip(found, block.encode(torch.stack(list(rows[cut]))), strict=True):
                whole[cut] = part
    for part in found:
        if part.is_floating_point() and not _finite(part):
            at = int(torch.isfinite(part).all(1).int().argmin())
            raise _not_to_be_sent(names[at % len(names)], rows[at])
    return [part.view(torch.uint8).numpy(force=True) for part in found]


def _decode_block(
    block: Scheme[Any], pieces: Sequence[Sequence[np.ndarray]], rows: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Numbers [rows, heads, tokens, head_dim] of the parts' bytes, which come in pieces."""
    parts = [torch.empty((rows, count), dtype=kind) for kind, count in block.parts]
    for part, of_part in zip(parts, pieces, strict=True):
        np.concatenate(of_part, out=part.view(torch.uint8).flatten().numpy())
    parts = [part.to(device) for part in parts]
    if not all(_finite(part) for part in parts if part.is_floating_point()):
        raise damaged("it has NaN or infinity")
    numbers = torch.empty((rows, *block.shape), dtype=dtype, device=device)
    for cut in _cuts(rows, block.shape, numbers.device):
        block.decode(tuple(part[cut] for part in parts), numbers[cut])
    return numbers


def _cuts(rows: int, shape: Shape, device: torch.device) -> Iterator[slice]:
    """Slices of rows to work on at a time; all of them on a GPU."""
    at_once = max(1, _CACHED_NUMBERS // max(1, shape.numbers)) if device.type == "cpu" else max(1, rows)
    return (slice(start, start + at_once) for start in range(0, rows, at_once))


def _finite(x: Tensor) -> bool:
    """By the extremes: one pass that makes nothing."""
    return not x.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(x))


def _not_to_be_sent(stream: Stream, x: Tensor) -> MessageError:
    which = f"the {stream.half}s of layer {stream.layer} cannot be sent"
    if not bool(x.isfinite().all()):
        return MessageError(f"{which}: they have NaN or infinity")
    return MessageError(
        f"{which}: the codec writes them, or their bounds, in fp16",
        value=float(x.abs().max()),
        valid="magnitudes up to 65504, or codecs fp32, bf16 and symmetric",
    )


def _sealed(body: Sequence[Any]) -> bytes:
    crc = 0
    for piece in body:
        crc = zlib.crc32(piece, crc)
    return b"".join([*body, crc.to_bytes(_CRC_BYTES, "little")])


def _opened(blob: bytes) -> tuple[Header, list[list[np.ndarray]]]:
    """Header of a blob, and the bytes of each part of each block; nothing is allocated that it has no bytes for."""
    view = memoryview(blob)
    refuse_foreign(view)
    body, crc = view[:-_CRC_BYTES], view[-_CRC_BYTES:]
    if zlib.crc32(body) != int.from_bytes(crc, "little"):
        raise damaged(f"the checksum of its {len(blob)} bytes does not hold")
    header, at = read_header(body)
    blocks = []
    for block, streams in _blocks(header):
        sizes = [streams * count * dtype.itemsize for dtype, count in block.parts]
        *plain, codes = sizes
        if getattr(header.codec, "entropy", False):
            parts, at = _taken(body, at, plain)
            inflated, at = entropy.inflate(body, at, codes)
            parts.append(inflated)
        else:
            parts, at = _taken(body, at, sizes)
        blocks.append(parts)
    if at != len(body):
        raise damaged(f"it has {len(body) - at} bytes too many")
    return header, blocks


def _taken(body: memoryview, at: int, sizes: Sequence[int]) -> tuple[list[np.ndarray], int]:
    if at + sum(sizes) > len(body):
        raise damaged(f"it should have {at + sum(sizes)} bytes and more, and has {len(body)}")
    ends = np.cumsum([at, *sizes]).tolist()
    parts = [np.frombuffer(body[start:end], np.uint8) for start, end in pairwise(ends)]
    return parts, ends[-1]


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        found[key].append(at)
    return list(found.values())
