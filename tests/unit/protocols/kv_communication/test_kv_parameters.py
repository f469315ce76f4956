from __future__ import annotations

from typing import Any

import pytest
from kv_studies import TRAINING, study

from nullarm.errors import StudyError
from nullarm.protocols.kv_communication.parameters import Channel, Grid, KvCommunicationParameters, Link, milestone
from nullarm.protocols.kv_communication.protocol import KvCommunication


def parameters(channels: dict[str, Any] | None = None, **more: Any) -> KvCommunicationParameters:
    return KvCommunication().parameters(study(channels, **more))


def test_a_grid_names_every_combination_and_a_whole_prompt_once() -> None:
    grid = Grid(codecs=("int8", "int4"), proportions=(1.0, 0.25), orders=("front", "back"))

    assert list(grid.channels()) == [
        "int8", "int8_p0p25_front", "int8_p0p25_back", "int4", "int4_p0p25_front", "int4_p0p25_back",
    ]  # fmt: skip


def test_a_point_of_the_grid_that_is_declared_is_that_arm() -> None:
    declared = {"eight": {"codec": "int8"}, "half": {"codec": "int8", "proportion": 0.5, "order": "back"}}
    found = parameters(declared, grid={"proportions": [1.0, 0.5], "orders": ["back"]}).all_channels()

    assert set(found) == {"alone", "c2c", "eight", "half"}


def test_a_channel_with_the_name_of_another_point_of_the_grid_is_refused() -> None:
    with pytest.raises(StudyError, match=r"channels\.int8 differs from the arm of the grid of this name"):
        parameters({"int8": {"codec": "int4"}}, grid={})
    with pytest.raises(StudyError, match=r"grid\.codecs: no 'int3'"):
        parameters(grid={"codecs": ["int3"]})
    with pytest.raises(StudyError, match=r"codecs\.int8 is known already, as Symmetric"):
        parameters(codecs={"int8": {"kind": "symmetric", "bits": 4}})


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ({"via": "receiver"}, 0),
        ({"via": "text"}, 0),
        ({}, 0),
        ({"codec": "fp32"}, 0),
        ({"codec": "mine"}, 0),
        ({"fusion": "as_it_goes", "proportion": 0.5}, 5),
        ({"alignment": "one_id"}, 5),
        ({"sharer_cache": "shuffled", "codec": "int8"}, 0),
        ({"codec": "int8"}, 2),
        ({"codec": "int8", "proportion": 0.5, "order": "back"}, 3),
        ({"proportion": 0.5, "order": "expected_attention"}, 5),
        ({"fusers": ["other"]}, 5),
        ({"codec": "r", "allocation": {"mean_bits": 2}}, 5),
    ],
)
def test_every_arm_belongs_to_one_milestone(channel: dict[str, Any], expected: int) -> None:
    codecs = parameters(codecs={"r": {"kind": "rotated"}, "mine": {"kind": "raw", "dtype": "float16"}}).codec_table
    assert milestone(Channel.model_validate(channel), codecs) == expected


def test_time_on_the_link() -> None:
    link = Link(bandwidth_gbit_s=0.008, rtt_s=0.1)  # a megabyte a second

    assert link.seconds(500_000) == pytest.approx(0.55)
    assert link.seconds(500_000, 1000) == pytest.approx(0.601)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ({"via": "text", "codec": "int8"}, "via text sends no cache: codec says nothing"),
        ({"text_bytes": 3}, "via fuser sends no text: text_bytes says nothing"),
        ({"sharer": "chat"}, "via fuser: sharer says nothing"),
        ({"codec": "int7"}, r"channels.odd.codec: no 'int7' \(did you mean 'int8'\?\); valid: \['bf16'"),
        ({"fusers": ["man"]}, r"channels.odd.fusers: no 'man' \(did you mean 'main'\?\)"),
        ({"via": "sharer", "sharer": "cat"}, r"channels.odd.sharer: no 'cat' \(did you mean 'chat'\?\)"),
        ({"codec": "int8", "allocation": {"bits": [1, 2], "mean_bits": 2}},
         r"codec 'int8' has no codes of \[1\] bits; valid: \(2, 3"),
        ({"codec": "int8", "allocation": {"mean_bits": 1.5}}, r"mean_bits: codec 'int8' has \(2, 3, 4, 8\)"),
        ({"codec": "r", "allocation": {"bits": [2], "mean_bits": 2}}, "nothing to choose: `bits` is 2 alone"),
        ({"codec": "fp16", "allocation": {"mean_bits": 2}}, "codec 'fp16' has no bits to allocate"),
        ({"codec": "r", "allocation": {"bits": [2, 4], "mean_bits": 1}}, "mean_bits 1 is not within `bits`, 2 to 4"),
        ({"proportion": 0.0}, "greater than 0"),
        ({"order": "back"}, r"the whole prompt is sent \(proportion 1\): order says nothing"),
        ({"combine": "parallel"}, "there is one fuser: combine says nothing"),
    ],
)  # fmt: skip
def test_a_channel_that_makes_no_sense_is_refused(channel: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        parameters({"odd": channel}, codecs={"r": {"kind": "rotated"}})


@pytest.mark.parametrize(
    ("fuser", "words"),
    [
        ({"sharer": "cat", "directory": "x"}, "fusers.odd.sharer: no 'cat'"),
        ({"sharer": "chat"}, "either a `directory` or `training`"),
        ({"sharer": "chat", "directory": "x", "codecs": ["int8"]}, "is not trained: codecs says nothing"),
        ({"sharer": "chat", "start_from": "odd", "training": {"steps": 1, "batch_size": 1, "learning_rate": 1}},
         r"fusers.odd.start_from: no 'odd'; valid: \['main'\]"),
        ({"sharer": "chat", "directory": "x", "shape": {}}, "has its shape: `shape` says nothing"),
        ({"sharer": "base", "start_from": "main", "training": TRAINING}, "'main' reads 'chat', not 'base'"),
        ({"sharer": "chat", "shape": {"sources": 2}, "training": TRAINING}, "one source for each layer: `sources`"),
        ({"sharer": "chat", "codecs": ["in"], "training": {"steps": 1, "batch_size": 1, "learning_rate": 1}},
         "fusers.odd.codecs: no 'in'"),
    ],
)  # fmt: skip
def test_a_fuser_that_makes_no_sense_is_refused(fuser: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        parameters(fusers={"odd": fuser}, sharers={"base": "builtin:world"})
