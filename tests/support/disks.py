"""Disks that are full or read-only: a real little file system where the test may mount one, else the same errors."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class LittleDisk:
    """A place that can be filled up, emptied and made read-only.

    Where no file system can be mounted, `os.fsync` in this process fails under the place with the error of the real
    one, which is the last moment at which a write can be refused.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, mounted: bool) -> None:
        self.root = root
        self.mounted = mounted
        self._patch = patch
        self._ballast = root / ".ballast"

    def fill(self) -> None:
        """From here on nothing fits any more."""
        if not self.mounted:
            self._fail_with(errno.ENOSPC)
            return
        with open(self._ballast, "wb", buffering=0) as file:
            for size in (65_536, 4_096, 512, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        """There is room again."""
        if self.mounted:
            self._ballast.unlink()
        else:
            self._patch.undo()

    def make_read_only(self) -> None:
        """From here on nothing can be written."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.root)], check=True)
        else:
            self._fail_with(errno.EROFS)

    def _fail_with(self, number: int) -> None:
        real = os.fsync

        def refuse(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(self.root)):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        self._patch.setattr(os, "fsync", refuse)


@contextmanager
def little_disk(root: Path, size_kib: int = 1024) -> Iterator[LittleDisk]:
    """A file system of its own at `root`, if this process may mount one."""
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(root)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        try:
            yield LittleDisk(root, patch, mounted=mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(root)], check=True)
