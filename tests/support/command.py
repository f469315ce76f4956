"""`nullarm` as people call it: in this process for speed, or in one of its own for signals."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

from nullarm.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, all of it, as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error, which is the last line of standard error, and has to be one line."""
        lines = self.err.splitlines()
        assert lines, "nothing on standard error"
        assert "Traceback" not in self.err
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert lines[-1].startswith("error: "), self.err
        return lines[-1]


def nullarm(*arguments: object) -> Outcome:
    """Call a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", ["nullarm", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextmanager
def nullarm_process(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Call a command in a process of its own, with Ctrl-C working whatever this process does with it."""
    command = [sys.executable, "-m", "nullarm", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, preexec_fn=_take_signals,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen[str], timeout_s: float) -> Outcome:
    """Wait for a command."""
    out, err = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, out, err)


def on_a_terminal(*arguments: str, **environment: str) -> bytes:
    """What a command writes when both of its outputs are a terminal."""
    ours, theirs = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "nullarm", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**clean, **environment}
    ):
        os.close(theirs)
        written = b""
        with suppress(OSError):  # the last process has closed its end
            while block := os.read(ours, 4096):
                written += block
    os.close(ours)
    return written


def _take_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
