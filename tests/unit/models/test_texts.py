import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from nullarm.errors import DatasetError
from nullarm.models.texts import Document, Split, Text, make_text
from nullarm.models.texts.base import SPLITS, documents_hash, estimated_tokens
from nullarm.models.texts.factory import KINDS
from nullarm.models.texts.topics import Topics
from nullarm.models.texts.world import WorldText


@dataclass(frozen=True)
class Given(Text):
    """A text of the documents that a test hands in."""

    name: ClassVar[str] = "given"
    train: tuple[Document, ...] = (Document("a", "One."),)
    test: tuple[Document, ...] = (Document("b", "Two."),)

    def tokens_per_split(self, split: Split) -> int:
        return estimated_tokens(self.read(split))

    def content_id(self) -> str:
        return documents_hash(self)

    def read(self, split: Split) -> Sequence[Document]:
        return self.train if split == "train" else self.test


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "files"])
def test_a_kind_alone_makes_a_text(kind: str) -> None:
    text = make_text({"kind": kind})
    assert text.name == kind
    assert text.content_id().startswith(f"{kind}:")
    assert text.content_id() == make_text({"kind": kind}).content_id()
    assert all(text.tokens_per_split(split) > 0 for split in SPLITS)


def test_making_a_text_does_not_wait_for_torch() -> None:
    code = (
        "import sys, nullarm.models.texts as t; t.make_text({'kind': 'world'}).documents('test'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nullarm.models.texts.world" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "text.kind names no kind of text; valid: files, topics, wikitext, world"),
        (
            {"kind": "wikitex"},
            "text.kind names no kind of text (did you mean 'wikitext'?); got 'wikitex'; valid: files",
        ),
        ({"kind": "world", "test_document": 3}, "text.test_document is no setting of world (did you mean 'test_doc"),
        ({"kind": "world", "test_documents": 1.5}, "text.test_documents of world is of the wrong type; got 1.5"),
        ({"kind": "world", "train_documents": 0}, "text.train_documents of world is too small; got 0; valid: >= 1"),
        ({"kind": "files", "train": "a"}, "text.test of files is missing; valid: the path of the test split's file"),
    ],
)
def test_wrong_settings_name_culprit_and_valid_ones(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        make_text(settings)
    assert words in str(caught.value)


def test_documents_are_those_of_the_split() -> None:
    assert Given().documents("train") == (Document("a", "One."),)
    assert Given().documents("test") == (Document("b", "Two."),)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_documents_is_refused(split: Split) -> None:
    empty = replace(Given(), **{split: ()})
    with pytest.raises(DatasetError, match=rf"given.{split} has no documents; valid: at least one document in each"):
        empty.documents("train")


def test_a_blank_document_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"given.test: a document is blank; got 'c'"):
        Given(test=(Document("b", "Two."), Document("c", " \n"))).documents("train")


def test_the_same_content_in_both_splits_is_refused() -> None:
    with pytest.raises(DatasetError, match="given: train and test have the same content"):
        Given(test=(Document("b", "One."),)).documents("test")


@pytest.mark.parametrize("same", ["One.", "One.\n"])
def test_a_document_in_both_splits_is_refused_by_its_id(same: str) -> None:
    shared = Given(test=(Document("b", "Two."), Document("c", same)))
    with pytest.raises(DatasetError, match=r"occurs in train \(a\) and in test; got 'c'.*next: take it out of one"):
        shared.documents("train")


@pytest.mark.parametrize("test", [("a", "b"), ("b", "b")])
def test_an_id_used_twice_is_refused(test: tuple[str, str]) -> None:
    twice = Given(test=tuple(Document(name, f"{name} {n}") for n, name in enumerate(test)))
    with pytest.raises(DatasetError, match=r"two documents have the same id; got '[ab]'; valid: ids unique over both"):
        twice.documents("test")


def test_worlds_are_the_same_on_every_call_and_share_nothing() -> None:
    text = WorldText(train_documents=20, test_documents=10)
    train, test = text.documents("train"), text.documents("test")
    assert (len(train), len(test)) == (20, 10)
    assert list(train) == list(WorldText(train_documents=20, test_documents=10).documents("train"))
    assert not {d.text for d in train} & {d.text for d in test}
    assert all("  " not in d.text for d in train)


def test_documents_of_the_world_are_joined() -> None:
    lengths = [
        sum(len(d.text.split()) for d in WorldText(document_length=n).documents("test")) / (64 * n) for n in (4, 16)
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_world_documents_too_short_to_differ_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"world: a document occurs in train \(train-\d+\) and in test"):
        WorldText(train_documents=3000, test_documents=300, document_length=1).documents("test")


def test_estimates_of_the_world_are_near(world_model: tuple[Any, Any]) -> None:
    text = WorldText()
    counted = sum(len(world_model[1](d.text)["input_ids"]) for d in text.documents("test"))
    assert text.tokens_per_split("test") == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("knob", ["train_documents", "test_documents", "document_length"])
def test_every_knob_of_the_world_names_other_documents(knob: str) -> None:
    assert make_text({"kind": "world", knob: 7}).content_id() != WorldText().content_id()


def test_pages_of_one_text_stay_together() -> None:
    from pydoc_data.topics import topics

    train, test = Topics().documents("train"), Topics().documents("test")
    assert sorted(d.id for d in [*train, *test]) == sorted(topics)
    repeated = {text for text, count in Counter(topics.values()).items() if count > 1}
    assert not repeated & {d.text for d in train} & {d.text for d in test}
    assert 0.1 < len(test) / len(topics) < 0.5
