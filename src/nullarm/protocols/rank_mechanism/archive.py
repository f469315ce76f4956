"""The results tarball: equal contents give equal bytes, and a SHA-256 manifest travels with it."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from nullarm.store.atomic import write_bytes

MANIFEST = "SHA256SUMS"
"""One line per file, as `sha256sum --check` reads it."""


def write_archive(directory: Path, name: str, files: Mapping[str, bytes], more: Mapping[str, bytes]) -> None:
    """Write `<name>.tar.gz` and, beside it, `SHA256SUMS` over it and `files`; another manifest lies inside.

    Args:
        directory: Where to.
        name: Name of the archive and of the folder in it.
        files: Contents by path inside the folder; they lie in `directory` as well.
        more: Contents by path inside the folder that lie elsewhere.
    """
    inside = {**files, **more}
    packed = tar_gz({f"{name}/{path}": data for path, data in {**inside, MANIFEST: manifest_of(inside)}.items()})
    write_bytes(directory / f"{name}.tar.gz", packed)
    write_bytes(directory / MANIFEST, manifest_of({**files, f"{name}.tar.gz": packed}))


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """`<sha256>  <path>` of every file, sorted by path."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items())]
    return "".join(lines).encode()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tar of `files`: sorted by name, without times, owners or machine in it."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as zipped:
        with tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path, data in sorted(files.items()):
                entry = tarfile.TarInfo(path)  # mtime 0, uid 0, gid 0, no names
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
