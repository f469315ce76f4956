from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import StudyError
from nullarm.study.strict_yaml import MAX_BYTES, MAX_NODES, parse, parse_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("+12", 12),
        ("-0", 0),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-1.5", -1.5),
        ("1e", "1e"),
        ("'no'", "no"),
        ('"12"', "12"),
        ("|\n  1\n", "1\n"),
        ("=", "="),
        ("12345678901234567890", 12345678901234567890),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse(f"a: {text}", "f").data["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "f:4: duplicate key 'b.c'"),
        ('a: 1\n"a": 2', "f:2: duplicate key 'a'"),
        ("a: !!str 5", "f:1: not valid YAML: tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !!seq [1]", "tag 'tag:yaml.org,2002:seq' is not allowed"),
        ("a: ! 5", "tag '!' is not allowed"),
        ("a:\n - !!python/object/apply:os.system [ls]", "f:2: not valid YAML: tag"),
        ("a: .nan", "f:1: a: .nan is not a finite number"),
        ("a: [1, -.inf]", "a.1: -.inf is not a finite number"),
        ("a: 1e999", "1e999 is not a finite number"),
        ("a: " + "9" * 200, "the number has 200 digits"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "f:3: merge keys (<<) are not allowed"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("a: &x [*x]", "expands beyond"),
        ("a: *nowhere", "undefined alias"),
        ("a: [1", "f:1: not valid YAML"),
        ("- 1\n---\n- 2", "another document"),
        ("a: \x01", "not valid YAML"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("[" * 2_000, "nested too deeply"),
    ],
)
def test_what_can_surprise_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse(text, "f")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_expands() -> None:
    levels = "abcdefghi"
    lines = [f"{levels[0]}: &{levels[0]} [{', '.join('x' * 10)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(levels)]
    with pytest.raises(StudyError, match=f"expands beyond {MAX_NODES} nodes"):
        parse("\n".join(lines), "bomb")


def test_an_alias_that_is_used_twice_is_fine() -> None:
    assert parse("a: &x [1, 2]\nb: *x", "f").data == {"a": [1, 2], "b": [1, 2]}


def test_a_key_is_the_text_that_stands_there() -> None:
    assert parse("null: 1\n2: 3\ntrue: 4\n'<<': 5", "f").data == {"null": 1, "2": 3, "true": 4, "<<": 5}


def test_keys_keep_their_lines() -> None:
    document = parse("a: 1\nb:\n  c:\n    - d: 2\n", "f")
    assert document.lines == {"a": 1, "b": 2, "b.c": 3, "b.c.0.d": 4}


def test_an_empty_document_is_none() -> None:
    assert parse("# nothing\n", "f").data is None


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(StudyError, match="too large"):
        parse("#" * (MAX_BYTES + 1), "f")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert parse_file(path).data == {"a": 1}


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(StudyError, match=r"not UTF-8 text \(byte 8\)"):
        parse_file(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_names_the_next_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="nullarm init"):
        parse_file(tmp_path / name)
