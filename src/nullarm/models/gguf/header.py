"""The header of a GGUF file: metadata, and where each tensor lies. No weight is read.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nullarm.errors import ModelError

VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        shape: As torch has it: rows first (the file has it reversed).
        ggml_type: Number of its type: 0 for F32, 1 for F16, others for blocks of codes and scales.
        start: Offset of its first byte in the file.
        nbytes: Its length in the file.
    """

    shape: tuple[int, ...]
    ggml_type: int
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights.

    Attributes:
        path: The file.
        metadata: Values by key; arrays as lists.
        tensors: By their names in the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """Llama.cpp's name of the architecture, such as `llama`."""
        return str(self.metadata.get("general.architecture", ""))


def read_header(path: Path) -> Header:
    """Read a file's header, and see that the file is as long as the header says.

    Raises:
        ModelError: The file cannot be read, is no GGUF file, is one of several parts or is cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, path)
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError, struct.error) as error:
        raise ModelError(
            f"the GGUF file cannot be read, or is cut short: {error}",
            value=str(path),
            valid=f"a whole GGUF file of version {' or '.join(map(str, VERSIONS))}",
            next_command=f"ls -l {path}",
        ) from error


class _Cursor:
    """A place in the file that moves on with every value read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        raw = self.data[self.at : self.at + length]
        if len(raw) != length:
            raise ValueError(f"a string of {length} bytes goes beyond its end")
        self.at += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"its metadata have a value of the unknown type {kind}")
        return self.take(_SCALARS[kind])[0]

    def _array(self) -> list[Any]:
        kind, count = self.take("IQ")
        if kind in _SCALARS:
            return list(self.take(f"{count}{_SCALARS[kind]}"))
        if kind != _STRING:
            raise ValueError(f"its metadata have an array of the unknown type {kind}")
        return [self.string() for _ in range(count)]


def _parse(data: mmap.mmap, path: Path) -> Header:
    cursor = _Cursor(data)
    if (magic := cursor.take("4s")[0]) != b"GGUF":
        raise ValueError(f"it starts with {magic!r} instead of b'GGUF'")
    version, tensors, pairs = cursor.take("IQQ")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}")
    metadata = {cursor.string(): cursor.value(cursor.take("I")[0]) for _ in range(pairs)}
    _refuse_parts(metadata, path)
    entries = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    placed = {name: TensorInfo(shape, kind, start + offset, size) for name, shape, kind, offset, size in entries}
    if (end := max((t.start + t.nbytes for t in placed.values()), default=0)) > len(data):
        raise ValueError(f"it has {len(data)} bytes of {end}")
    return Header(path, metadata, placed)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    name = cursor.string()
    (dimensions,) = cursor.take("I")
    shape = tuple(reversed(cursor.take(f"{dimensions}Q")))
    kind, offset = cursor.take("IQ")
    return name, shape, kind, offset, _nbytes(name, shape, kind)


def _nbytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(known): size for known, size in GGML_QUANT_SIZES.items()}
    if kind not in sizes:
        raise ValueError(f"tensor {name} is of the unknown type {kind}")
    values, nbytes = sizes[kind]
    return prod(shape) // values * nbytes


def _refuse_parts(metadata: Mapping[str, Any], path: Path) -> None:
    if (parts := metadata.get("split.count", 1)) > 1:
        raise ModelError(
            f"the GGUF file is one of {parts} parts",
            value=str(path),
            valid="a model in one file",
            next_command=f"llama-gguf-split --merge {path} whole.gguf",
        )
