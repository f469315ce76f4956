from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.errors import DatasetError
from nullarm.protocols.residual.reading.prompt_file import read_prompts


def written(tmp_path: Path, content: str, name: str = "prompts.txt") -> Path:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    return path


def test_one_prompt_a_line_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, "first \n\n# no comment\n   \n  third --- \n")
    assert read_prompts(path) == ("first ", "# no comment", "  third --- ")


def test_a_separator_line_makes_blocks(tmp_path: Path) -> None:
    path = written(tmp_path, "---\none\n\ntwo\n---\n\n---\n  three\n----\n")
    assert read_prompts(path) == ("one\n\ntwo", "  three\n----")


def test_windows_line_ends_and_byte_order_mark_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n---\r\ntwo\u2028more\r\n".encode())
    assert read_prompts(path) == ("one", "two\u2028more")


def test_jsonl_has_prompt_or_text(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a\\nb", "text": "not this"}\n\n{"text": "c"}\n', "prompts.jsonl")
    assert read_prompts(str(path)) == ("a\nb", "c")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the prompt file is missing; got '.*/no\.txt'; next: ls "):
        read_prompts(tmp_path / "no.txt")
    with pytest.raises(DatasetError, match=r"the prompt file cannot be read"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("content", ["", "\n \n", "---\n\n---\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DatasetError, match=r"the prompt file has no prompts; got '.*prompts\.txt'"):
        read_prompts(written(tmp_path, content))


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"fine\nstill\n\xff\n")
    with pytest.raises(DatasetError, match=r"prompts\.txt, line 3 is not UTF-8: invalid start byte"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ('["a"]', "line 2 is not a JSON object"),
        ('{"question": "a"}', "line 2 lacks the key 'prompt'"),
        ('{"prompt": 3}', "line 2: 'prompt' is not text"),
        ('{"text": " "}', "line 2: the prompt is empty"),
    ],
)
def test_a_malformed_line_is_refused_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = written(tmp_path, f'{{"prompt": "a"}}\n{line}\n', "prompts.jsonl")
    with pytest.raises(DatasetError, match=f"prompts.jsonl, {words}"):
        read_prompts(path)
