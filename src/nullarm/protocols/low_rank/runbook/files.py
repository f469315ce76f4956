"""Files of the runbook's tree: whole or not there, and without anything that looks like a credential."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullarm.store.atomic import make_directory, write_bytes
from nullarm.store.files import encode_json

HIDDEN = "[hidden]"

_VALUE = r"""[^\s"'\\,;&]+"""
_NAMES = (
    r"\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_?KEY)(?:_[A-Z_]+)?[\"']?\s*[=:]\s*[\"']?",  # HF_TOKEN=…
    r"[?&][\w-]*(?i:token|key|signature|credential)=",  # …?X-Amz-Signature=…
    r"\bBearer\s+",
)
_SHAPES = (
    r"\bhf_\w{16,}",
    r"\bgh[opsur]_\w{16,}",
    r"\bgithub_pat_\w{16,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bsk-[\w-]{16,}",
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)",  # user:password@
)
_CREDENTIALS = re.compile(rf"(?P<name>{'|'.join(_NAMES)}){_VALUE}|{'|'.join(_SHAPES)}")


def write_text(path: Path, text: str) -> Path:
    """Write a text file, its credentials hidden.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    return _write(path, without_credentials(text).encode())


def write_data(path: Path, value: Any) -> Path:
    """Write JSON, its credentials hidden.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    return _write(path, encode_json(_hidden(value)))


def without_credentials(text: str) -> str:
    """The text with whatever looks like a token, key or password replaced.

    The source pulled a log into which its launcher had printed a token. Nothing here prints one, but libraries write
    into the logs of cells, and their errors name addresses.
    """
    return _CREDENTIALS.sub(lambda found: (found["name"] or "") + HIDDEN, text)


def _hidden(value: Any) -> Any:
    """JSON data, its credentials hidden: in each string by itself, as escapes would join it to its neighbours."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {key: _hidden(one) for key, one in value.items()}
    return [_hidden(one) for one in value] if isinstance(value, list | tuple) else value


def _write(path: Path, data: bytes) -> Path:
    make_directory(path.parent)
    write_bytes(path, data)
    return path
