from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import IntegrityError
from nullarm.store.files import (
    BLOCK_BYTES,
    decode_table,
    encode_json,
    encode_table,
    read_json,
    sha256_bytes,
    sha256_path,
    size_bytes,
    write_json,
)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = b"x" * (BLOCK_BYTES + 7)
    (tmp_path / "f").write_bytes(data)
    assert sha256_path(tmp_path / "f") == sha256_bytes(data)
    assert size_bytes(tmp_path / "f") == len(data)


def test_the_hash_of_a_directory_sees_names_and_content(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return sha256_path(tmp_path / name)

    first = made("a", {"x": "1", "in/y": "2"})
    assert first == made("b", {"in/y": "2", "x": "1"})
    assert first != made("c", {"x": "1", "in/y": "3"})
    assert first != made("d", {"x": "1", "in/z": "2"})
    assert size_bytes(tmp_path / "a") == 2


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False))
)
def test_json_comes_back(value: dict[str, object]) -> None:
    with_path = encode_json(value)
    assert with_path.endswith(b"\n")
    assert encode_json(dict(reversed(value.items()))) == with_path


def test_json_is_written_and_read(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"ä": [1, 2.5, None]})
    assert read_json(tmp_path / "f.json") == {"ä": [1, 2.5, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_finite_numbers_only(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_json({"a": value})


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b""])
def test_what_is_not_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"f\.json is not JSON"):
        read_json(tmp_path / "f.json")


def test_equal_tables_have_equal_bytes() -> None:
    def table() -> pa.Table:
        return pa.table({"item": ["a", "b"], "score": [0.5, None], "n": pa.array([1, 2], pa.int32())})

    assert encode_table(table()) == encode_table(table())
    assert decode_table(encode_table(table())).equals(table())
    assert encode_table(table()) != encode_table(table().slice(0, 1))
