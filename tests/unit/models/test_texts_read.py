"""Texts that are read: local files, and WikiText-2 from a stand-in."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.texts.files import Files
from nullarm.models.texts.wikitext import BETWEEN, WikiText

TRAIN_ROWS = ["", " = First = \n", "", " Some text . \n", "", " = = Part = = \n", "", " More of it . \n"]
TEST_ROWS = [
    "", " = Robert = Boulter = \n", "", " He is an actor . \n", " = x + y = \n", " follows from that . \n", "",
    " = = = Deeper = = = \n", "", " A line . \n", "", " = Other = \n", "", " Naïve text . \n", "",
]  # fmt: skip


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.\n", "utf-8")
    (tmp_path / "b.txt").write_text("Three.", "utf-8")
    text = Files(train=str(tmp_path / "a.txt"), test=str(tmp_path / "b.txt"))
    [train], [test] = text.documents("train"), text.documents("test")
    assert (train.id, train.text) == ("train", "One.\nTwo.\n")
    assert (test.id, test.text) == ("test", "Three.")


@pytest.fixture
def lines(tmp_path: Path) -> Files:
    train = write_rows(tmp_path / "a.jsonl", [{"text": "One. " * 40, "id": "first"}, {"text": "Two."}])
    return Files(train=train, test=write_rows(tmp_path / "b.jsonl", [{"text": "Three."}, {"text": "Four.", "id": 4}]))


def test_a_line_of_jsonl_is_one_document(lines: Files) -> None:
    assert [d.id for d in lines.documents("train")] == ["first", "train-2"]
    assert [(d.id, d.text) for d in lines.documents("test")] == [("test-1", "Three."), ("4", "Four.")]
    assert (lines.tokens_per_split("train"), lines.tokens_per_split("test")) == (52, 3)


def test_documents_name_a_file_not_its_place(lines: Files, tmp_path: Path) -> None:
    moved = write_rows(tmp_path / "moved.jsonl", [{"text": "Three.", "id": "test-1"}, {"id": "4", "text": "Four."}])
    assert Files(train=lines.train, test=moved).content_id() == lines.content_id()
    other = write_rows(tmp_path / "other.jsonl", [{"text": "Three!", "id": "test-1"}, {"id": "4", "text": "Four."}])
    assert Files(train=lines.train, test=other).content_id() != lines.content_id()


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_a_missing_file_is_named(lines: Files, tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"file is missing; got '.*{name}'; next: ls {tmp_path}"):
        Files(train=lines.train, test=str(tmp_path / name)).documents("train")


def test_a_file_that_is_no_text_is_named(lines: Files, tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"the text file cannot be read: .*; got '.*bytes.txt'"):
        Files(train=lines.train, test=str(tmp_path / "bytes.txt")).documents("train")


def test_a_line_without_text_is_named(lines: Files, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "x"}])
    with pytest.raises(DatasetError, match=r"other.jsonl, line 1 lacks the key 'text'"):
        Files(train=lines.train, test=other).documents("test")


def test_one_file_for_both_splits_is_refused(lines: Files) -> None:
    with pytest.raises(DatasetError, match="files: train and test have the same content"):
        Files(train=lines.train, test=lines.train).documents("test")


@pytest.fixture
def wikitext(tmp_path: Path) -> WikiText:
    write_rows(tmp_path / "train.jsonl", [{"text": row} for row in TRAIN_ROWS])
    write_rows(tmp_path / "test.jsonl", [{"text": row} for row in TEST_ROWS])
    return WikiText(path=str(tmp_path))


def test_articles_begin_at_titles_and_nowhere_else(wikitext: WikiText) -> None:
    [train] = wikitext.documents("train")
    assert train.text == BETWEEN.join(TRAIN_ROWS)
    first, second = wikitext.documents("test")
    assert (first.id, second.id) == ("test-0", "test-1")
    assert first.text.startswith("\n\n = Robert = Boulter = \n")
    assert "x + y" in first.text
    assert "Deeper" in first.text
    assert second.text.startswith(" = Other = \n")


def test_all_articles_joined_are_the_text_that_others_measure_on(wikitext: WikiText) -> None:
    assert BETWEEN.join(d.text for d in wikitext.documents("test")) == "\n\n".join(TEST_ROWS)


def test_rows_name_wikitext_and_its_place_does_not(wikitext: WikiText, tmp_path: Path) -> None:
    before = wikitext.content_id()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert WikiText(path=str(copy)).content_id() == before
    write_rows(copy / "test.jsonl", [{"text": "Other ."}])
    assert WikiText(path=str(copy)).content_id() != before
    assert WikiText().content_id() != WikiText(revision="other").content_id()


def test_published_sizes_need_no_download(wikitext: WikiText) -> None:
    assert WikiText().tokens_per_split("test") > 200_000
    assert wikitext.tokens_per_split("test") < 100


def test_rows_of_the_hub_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Hub:
        @staticmethod
        def load_dataset(*names: str, **options: str) -> list[dict[str, str]]:
            asked.append((names, options))
            return [{"text": row} for row in (TRAIN_ROWS if options["split"] == "train" else TEST_ROWS)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert len(WikiText().documents("test")) == 2
    assert asked == [
        (("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": split, "revision": "main"})
        for split in ("train", "test")
    ]


def test_a_hub_that_cannot_be_reached_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> None:
            raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", Unreachable)
    with pytest.raises(DatasetError, match=r"reachable: offline; got 'Salesforce/wikitext'.*next: hf download"):
        WikiText().documents("test")
