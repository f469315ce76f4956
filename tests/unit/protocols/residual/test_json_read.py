"""JSON files of both schemas, one record at a time, and what is none of them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import FormatError, UsageError
from nullarm.protocols.residual.export import read as json_read
from nullarm.protocols.residual.export.read import read_records
from nullarm.protocols.residual.export.records import records_of
from nullarm.protocols.residual.export.schema import check_record
from nullarm.protocols.residual.export.write import write_json
from nullarm.protocols.residual.runs import multi_pass
from nullarm.store.record import FinishedCell
from support.captures import capture_store, finish_capture


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FinishedCell]:
    found = {}
    for name, passes in (("single", None), ("multi", multi_pass())):
        with capture_store(tmp_path_factory.mktemp(name) / "study", passes=passes) as store:
            found[name] = finish_capture(store, next(iter(store.plan)), passes=passes)
    return found


def record(both: dict[str, FinishedCell], name: str) -> dict[str, Any]:
    return deepcopy(next(records_of(both[name])))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["single", "multi"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_what_was_written_is_read(
    both: dict[str, FinishedCell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(json_read, "CHUNK", chunk)
    path = write_json(both[name], tmp_path)[0]
    assert list(read_records(path)) == list(records_of(both[name]))


@pytest.mark.parametrize("name", ["single", "multi"])
def test_the_form_of_the_original_tool_is_read(both: dict[str, FinishedCell], tmp_path: Path, name: str) -> None:
    records = list(records_of(both[name]))
    path = write(tmp_path / "x.json", json.dumps(records, indent=2))
    assert list(read_records(path)) == records


def test_its_nan_is_a_missing_number(both: dict[str, FinishedCell], tmp_path: Path) -> None:
    one = record(both, "single")
    one["layers"]["0"]["0"] |= {"kl_div": float("nan"), "norm_sft": float("inf")}
    (found,) = read_records(write(tmp_path / "x.json", json.dumps([one])))
    assert (found["layers"]["0"]["0"]["kl_div"], found["layers"]["0"]["0"]["norm_sft"]) == (None, None)


def test_an_early_multi_pass_file_has_no_version_and_less_in_its_pairs(
    both: dict[str, FinishedCell], tmp_path: Path
) -> None:
    one = record(both, "multi")
    del one["format_version"]
    for pair in one["pairwise"]:
        del pair["prompt"], pair["tokens"]
    assert list(read_records(write(tmp_path / "x.json", json.dumps([one])))) == [one]


def test_a_file_without_records_has_none(tmp_path: Path) -> None:
    assert list(read_records(write(tmp_path / "x.json", " [ ]\n"))) == []


def test_records_come_before_the_rest_of_the_file_is_looked_at(both: dict[str, FinishedCell], tmp_path: Path) -> None:
    one = record(both, "single")
    path = write(tmp_path / "x.json", f"[{json.dumps(one)}, {{]")
    records = read_records(path)
    assert next(records) == one
    with pytest.raises(FormatError, match=r"x\.json is damaged or cut off"):
        next(records)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no JSON array; got 'an empty file'; valid: an array of records with `layers`"),
        ('{"entry": 1}', "holds no JSON array; got '{…'"),
        ('[{"prompt": "x"', "is damaged or cut off: "),
        ("[1]", "is damaged or cut off; got '1'"),
        ("[", "is damaged or cut off; got 'the end of the file'"),
        ('[{"tokens": [], "layers": {}} {"tokens": []}]', "is damaged or cut off; got '{'"),
        ('[{"tokens": [], "layers": {}},]', "is damaged or cut off; got ']'"),
        ('[{"tokens": [], "layers": {}}] []', "goes on after its array"),
        ('[{"b": 1, "a": 2}]', "record 0 is of neither schema; got ['a', 'b']"),
        ('[{"layers": {}}]', "record 0 has no `tokens`"),
        ('[{"tokens": [], "layers": []}]', "record 0 has no `layers`"),
        ('[{"tokens": [], "layers": {"x": {}}}]', "record 0: layer 'x' is none"),
        ('[{"tokens": [], "layers": {"0": {"0": 1}}}]', "record 0: position 0.0 is none"),
        ('[{"tokens": [], "runs": {}, "pairwise": []}]', "record 0.runs is no array"),
        ('[{"tokens": [], "runs": [], "pairwise": [{}]}]', "record 0.pairwise[0] has no `layers`"),
        ('[{"format_version": 3}]', "record 0 has format version 3, newer than this nullarm reads; valid: up to 2"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "x.json", text)
    with pytest.raises(FormatError) as told:
        list(read_records(path))
    assert str(told.value).startswith(str(path))
    assert words in str(told.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"[\xff\xfe]")
    with pytest.raises(FormatError, match=r"x\.json is no text in UTF-8"):
        list(read_records(tmp_path / "x.json"))


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*(No such file|Is a directory)"):
        list(read_records(tmp_path / name))


@pytest.mark.parametrize("name", ["single", "multi"])
def test_every_record_is_exactly_of_its_schema(both: dict[str, FinishedCell], name: str) -> None:
    for found in records_of(both[name]):
        check_record(found)


@pytest.mark.parametrize(
    ("where", "change", "fault"),
    [
        ((), {"extra": 1}, "record has an unknown key 'extra'"),
        ((), {"prompt": None}, "record.prompt is None, where text belongs"),
        ((), {"tokens": ["a", 1]}, "record.tokens[1] is 1, where text belongs"),
        ((), {"tokens": "abc"}, "record.tokens is no array"),
        ((), {"layers": []}, "record.layers is no object"),
        ((), {"layers": {"x": {}}}, "record.layers has the key 'x', where a whole number belongs"),
        (("metadata",), {"prompt_idx": True}, "record.metadata.prompt_idx is True, where a whole number belongs"),
        (("swap_options", "base"), {"embedding_source": "self"}, "is 'self', where 'base' or 'sft' belongs"),
        (("layers", "1", "2"), {"kl_div": None}, "record.layers.1.2.kl_div is None, where a finite number belongs"),
        (("layers", "1", "2"), {"kl_div": float("nan")}, "kl_div is nan, where a finite number belongs"),
        (("layers", "1", "2"), {"sft_norm_delta": "1"}, "is '1', where a finite number or null belongs"),
        (("layers", "1", "2", "top_k_decreased"), {"indices": [1.0]}, "indices[0] is 1.0, where a whole number"),
        (("layers", "1", "2", "top_k_decreased"), {"values": [1.0, float("-inf")]}, "values[1] is -inf, where"),
        (("layers", "1", "2", "tracked_token_logits"), {"3": 1.0}, "tracked_token_logits.3 is no object"),
    ],
)  # fmt: skip
def test_a_record_that_differs_is_refused(
    both: dict[str, FinishedCell], where: tuple[str, ...], change: dict[str, Any], fault: str
) -> None:
    one = part = record(both, "single")
    for key in where:
        part = part[key]
    part |= change
    with pytest.raises(FormatError) as told:
        check_record(one)
    assert fault in str(told.value)


def test_a_missing_key_is_named(both: dict[str, FinishedCell]) -> None:
    one = record(both, "multi")
    del one["runs"][2]["layers"]["0"]["1"]["norm"]
    with pytest.raises(FormatError, match=r"record\.runs\[2\]\.layers\.0\.1 has no key 'norm'"):
        check_record(one)


def test_a_single_pass_record_may_lack_what_compares_it_with_the_layer_below(both: dict[str, FinishedCell]) -> None:
    one = record(both, "single")
    one["layers"]["0"]["0"] |= {"base_cosine_prev": None, "sft_norm_delta": None}
    check_record(one)


def test_a_record_that_is_no_object_is_refused() -> None:
    with pytest.raises(FormatError, match="record is no object"):
        check_record([])
