"""YAML as a study file may use it: the core schema, and nothing that can surprise.

Refused, each with its line: duplicate keys, merge keys, tags, NaN and infinities, lists and mappings as keys, documents
that expand beyond `MAX_NODES` (alias bombs) or nest beyond `MAX_DEPTH`. Scalars follow the YAML 1.2 core schema, so
`no` is text and `1e-4` a number; a key is the text that stands there, so `null` and `1` are names like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nullarm.errors import StudyError

MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_BYTES = 4_000_000

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Composes nodes without resolving scalars: every plain scalar arrives as text, and no node carries a tag."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # the base class's own form

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if (tag := getattr(event, "tag", None)) is not None:
            raise yaml.composer.ComposerError(None, None, f"tag {tag!r} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class Document:
    """A parsed file: plain data, and the line of every key by its dotted path."""

    data: Any
    lines: dict[str, int]


def parse(text: str, source: str) -> Document:
    """Parse one YAML document.

    Args:
        text: The document.
        source: Its name in error messages.

    Raises:
        StudyError: The text is not YAML, or uses something refused.
    """
    if len(text) > MAX_BYTES:
        raise StudyError(f"{source}: the file is too large", value=f"{len(text)} bytes", valid=f"at most {MAX_BYTES}")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise StudyError(f"{source}{where}: not valid YAML: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise StudyError(f"{source}: not valid YAML: nested too deeply or holding unreadable characters") from error
    builder = _Builder(source)
    return Document(builder.build(node, (), 0) if node else None, builder.lines)


def parse_file(path: Path) -> Document:
    """Parse a YAML file.

    Raises:
        StudyError: The file is missing, not UTF-8, not YAML, or uses something refused.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(
            f"cannot read study file {path}: {error.strerror}", next_command="`nullarm init` writes one to start from"
        ) from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return parse(text, str(path))


class _Builder:
    """Nodes to plain data, keeping the lines and refusing what is refused."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {}
        self.count = 0

    def build(self, node: yaml.Node, path: tuple[str, ...], depth: int) -> Any:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise self.refuse(node, f"expands beyond {MAX_NODES} nodes or {MAX_DEPTH} levels")
        kinds: dict[type, Callable[[Any, tuple[str, ...], int], Any]] = {
            yaml.MappingNode: self.mapping,
            yaml.SequenceNode: self.sequence,
            yaml.ScalarNode: self.scalar,
        }
        return kinds[type(node)](node, path, depth)

    def mapping(self, node: yaml.MappingNode, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, "a key must be text")
            key = str(key_node.value)
            here = (*path, key)
            if key == "<<" and key_node.style is None:
                raise self.refuse(key_node, "merge keys (<<) are not allowed: write the keys out, or use `extends`")
            if key in result:
                raise self.refuse(key_node, f"duplicate key {'.'.join(here)!r}")
            self.lines[".".join(here)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, here, depth + 1)
        return result

    def sequence(self, node: yaml.SequenceNode, path: tuple[str, ...], depth: int) -> list[Any]:
        return [self.build(item, (*path, str(i)), depth + 1) for i, item in enumerate(node.value)]

    def scalar(self, node: yaml.ScalarNode, path: tuple[str, ...], depth: int) -> Any:
        text = str(node.value)
        if node.style is not None:
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text.lower() == "true"
        if _NOT_FINITE.fullmatch(text):
            raise self.refuse(node, f"{'.'.join(path) or 'the value'}: {text} is not a finite number")
        return self.number(node, text, path)

    def number(self, node: yaml.ScalarNode, text: str, path: tuple[str, ...]) -> int | float | str:
        if _INT.fullmatch(text):
            if len(text) > 100:
                raise self.refuse(node, f"{'.'.join(path) or 'the value'}: the number has {len(text)} digits")
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            value = float(text)
            if not math.isfinite(value):
                raise self.refuse(node, f"{'.'.join(path) or 'the value'}: {text} is not a finite number")
            return value
        return text

    def refuse(self, node: yaml.Node, problem: str) -> StudyError:
        return StudyError(f"{self.source}:{node.start_mark.line + 1}: {problem}")
