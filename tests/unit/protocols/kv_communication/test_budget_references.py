"""Which arm each arm is measured against."""

from __future__ import annotations

from pathlib import Path

from nullarm.protocols.kv_communication.budget.evaluations import Evaluation, evaluations
from nullarm.protocols.kv_communication.budget.references import receiver_only, unquantised
from nullarm.protocols.kv_communication.parameters import Channel
from support.communications import FakeArm, communication_store, finish_all


def evaluated(root: Path, channels: dict[str, Channel]) -> list[Evaluation]:
    arms = {name: FakeArm(channel, lambda i: False) for name, channel in channels.items()}
    store = communication_store(root, arms)
    finish_all(store, arms)
    return evaluations(store)


def test_bf16_comes_first_and_legacy_ones_last(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "study", {
        "legacy": Channel(codec="fp32", fusion="as_it_goes"), "half": Channel(codec="fp16"),
        "full": Channel(codec="fp32"), "brain": Channel(), "part": Channel(codec="fp32", proportion=0.5),
        "int8": Channel(codec="int8"),
    })  # fmt: skip
    assert unquantised(found) == {arm: "brain" for arm in ("legacy", "half", "full", "part", "int8")}
    assert set(unquantised([e for e in found if e.arm != "brain"]).values()) == {"full"}
    assert unquantised([e for e in found if e.arm in ("part", "int8")]) == {}


def test_the_route_of_an_arm_decides_its_reference(tmp_path: Path) -> None:
    two = ("default", "other")
    found = evaluated(tmp_path / "study", {
        "receiver": Channel(via="receiver"), "c2c": Channel(), "named": Channel(fusers=("default",), codec="int4"),
        "other": Channel(fusers=("other",)), "other_fp32": Channel(fusers=("other",), codec="fp32"),
        "other_int4": Channel(fusers=("other",), codec="int4", proportion=0.5),
        "added": Channel(fusers=two, combine="parallel"),
        "added_int4": Channel(fusers=two, combine="parallel", codec="int4"),
        "in_turn_int4": Channel(fusers=two, codec="int4"),
        "one_id": Channel(alignment="one_id"), "one_id_int8": Channel(alignment="one_id", codec="int8"),
        "as_it_goes_int8": Channel(fusion="as_it_goes", codec="int8"),
    })  # fmt: skip
    assert unquantised(found) == {
        "receiver": "c2c", "named": "c2c", "other": "c2c", "other_fp32": "other", "other_int4": "other",
        "added": "c2c", "added_int4": "added", "in_turn_int4": "c2c", "one_id": "c2c", "one_id_int8": "one_id",
        "as_it_goes_int8": "c2c",
    }  # fmt: skip


def test_everything_else_is_measured_against_the_receiver(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "study", {"receiver": Channel(via="receiver"), "c2c": Channel()})
    assert receiver_only(found) == {"c2c": "receiver"}
    assert receiver_only([e for e in found if e.arm == "c2c"]) == {}
