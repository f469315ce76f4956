"""JSON, Parquet and hashes: the only forms in which a study directory keeps data (beside safetensors)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullarm.errors import IntegrityError
from nullarm.store.atomic import write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_path(path: Path) -> str:
    """SHA-256 in hex of a file, or of a directory as the sorted list of its relative names and file hashes."""
    if path.is_dir():
        lines = [f"{p.relative_to(path).as_posix()} {sha256_path(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return sha256_bytes("\n".join(lines).encode())
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Size of a file, or of all files in a directory, in bytes."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def encode_json(value: Any) -> bytes:
    """Readable JSON with sorted keys.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically and durably."""
    write_bytes(path, encode_json(value))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        IntegrityError: The file is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(
            f"{path} is not JSON: {error}", next_command="`nullarm resume` runs the cell again"
        ) from error


def encode_table(table: pa.Table) -> bytes:
    """Parquet bytes of `table`; equal tables give equal bytes."""
    import pyarrow as pa  # here, so that commands which read no table start without it
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=True)
    return bytes(sink.getvalue().to_pybytes())


def decode_table(data: bytes) -> pa.Table:
    """Table from Parquet bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data))
