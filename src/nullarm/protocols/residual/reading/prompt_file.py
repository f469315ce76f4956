"""Prompts from a file."""

from __future__ import annotations

from pathlib import Path

from nullarm.errors import DatasetError
from nullarm.models.tasks.rows import Row, read_jsonl, text_field

SEPARATOR = "---"
"""A line of exactly this separates prompts of several lines."""


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts of a file, in their order, as they stand there.

    A `.jsonl` file has one object a line with `prompt`, or else `text`. Any other file is UTF-8 text: blocks between
    lines of exactly `---` (without the newlines around them) where there is such a line, else one prompt a line. Blank
    lines and blank blocks are passed over. There are no comments: a line that begins with `#` is a prompt.

    Raises:
        DatasetError: The file is missing, cannot be read, has no prompts, or a line of it is malformed.
    """
    path = Path(path).expanduser()
    if path.suffix == ".jsonl":
        return tuple(_prompt(row, f"{path}, line {number}") for number, row in read_jsonl(path))
    lines = _text(path).split("\n")
    found = _blocks(lines) if SEPARATOR in lines else lines
    prompts = tuple(prompt for prompt in found if prompt.strip())
    if not prompts:
        raise DatasetError("the prompt file has no prompts", value=str(path), valid="one prompt a line")
    return prompts


def _prompt(row: Row, where: str) -> str:
    prompt = text_field(row, "text" if "text" in row and "prompt" not in row else "prompt", where)
    if not prompt.strip():
        raise DatasetError(f"{where}: the prompt is empty", value=prompt, valid="some text")
    return prompt


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # a byte order mark is no part of the first prompt
    except FileNotFoundError:
        raise DatasetError("the prompt file is missing", value=str(path), next_command=f"ls {path.parent}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}, line {line} is not UTF-8: {error.reason}", valid="UTF-8 text") from error
    except OSError as error:
        raise DatasetError(f"the prompt file cannot be read: {error.strerror}", value=str(path)) from error


def _blocks(lines: list[str]) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line == SEPARATOR:
            blocks.append([])
        else:
            blocks[-1].append(line)
    return ["\n".join(block).strip("\n") for block in blocks]
