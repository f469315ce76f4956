"""Caches against text, at equal bytes and in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nullarm.protocols.kv_communication.budget.equal_bytes import EqualBytes, equal_bytes
from nullarm.protocols.kv_communication.budget.evaluations import evaluations
from nullarm.protocols.kv_communication.budget.message_time import crossing, message_times
from nullarm.protocols.kv_communication.budget.points import Point, curve_points
from nullarm.protocols.kv_communication.parameters import Channel, Link
from nullarm.store.study_store import StudyStore
from support.communications import ARMS, FakeArm, communication_store, finish_all


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = communication_store(tmp_path_factory.mktemp("plain") / "study")
    finish_all(store)
    return store


@pytest.fixture(scope="module")
def points(store: StudyStore) -> list[Point]:
    return curve_points(evaluations(store))


def texts_of(root: Path, size: int, **caches: tuple[int, int]) -> list[EqualBytes]:
    """A text of `size` bytes beside caches of so many bytes that are wrong on so many of the items."""
    arms = {"receiver": ARMS["receiver"], "text": FakeArm(Channel(via="text"), lambda i: i % 2 == 0, size)}
    for number, (name, (sent, wrong)) in enumerate(caches.items()):
        channel = Channel(codec="int4", proportion=0.5 - number / 10)
        arms[name] = FakeArm(channel, lambda i, wrong=wrong: i < wrong, sent)  # type: ignore[misc]
    store = communication_store(root, arms)
    finish_all(store, arms)
    return list(equal_bytes(curve_points(evaluations(store)), store.lock.study.analysis))


def test_a_text_is_compared_with_the_best_cache_that_is_no_larger(tmp_path: Path) -> None:
    (pair,) = texts_of(tmp_path / "study", 1000, poor=(1000, 30), good=(1250, 4), larger=(1251, 0))
    assert (pair.text.arm, pair.cache.arm) == ("text", "good")
    assert pair.compared is not None
    assert pair.compared.difference == pytest.approx(0.9 - 0.5)


def test_of_two_that_are_as_good_it_is_the_smaller_one(tmp_path: Path) -> None:
    (pair,) = texts_of(tmp_path / "study", 1000, large=(1100, 4), small=(500, 4))
    assert pair.cache.arm == "small"


def test_a_text_that_no_cache_is_as_small_as_is_compared_with_none(store: StudyStore, points: list[Point]) -> None:
    (pair,) = equal_bytes(points, store.lock.study.analysis)
    assert (pair.text.wire_bytes, pair.cache.wire_bytes, pair.compared) == (250.0, 1900.0, None)


def test_an_obstacle_takes_interval_and_p(store: StudyStore, tmp_path: Path) -> None:
    arms = {**ARMS, "text": replace(ARMS["text"], message_bytes=2000)}
    long = communication_store(tmp_path / "study", arms)
    finish_all(long, arms)
    (pair,) = equal_bytes(curve_points(evaluations(long)), long.lock.study.analysis, "a smoke run")
    assert pair.compared is not None
    assert (pair.compared.ends, pair.compared.p) == (None, None)
    assert pair.compared.difference == pytest.approx(0.3)


def test_time_is_what_was_measured_plus_the_wire(points: list[Point]) -> None:
    times = {t.result.arm: t for t in message_times(points)}
    assert list(times) == ["int8_p0p5_back", "int8", "text"]
    text = times["text"]
    for bandwidth in (0.001, 1.0, 100.0):
        link = Link(bandwidth_gbit_s=bandwidth)
        assert text.seconds(bandwidth) == pytest.approx(2.0 + 5 * 0.125 + link.seconds(250))


def test_they_cross_where_both_take_equally_long(points: list[Point]) -> None:
    _, cache, text = message_times(points)
    bandwidth = crossing(cache, text)
    assert bandwidth == pytest.approx(8 * (4000 - 250) / 1e9 / (2.0 - 0.125))
    assert bandwidth is not None
    assert cache.seconds(bandwidth) == pytest.approx(text.seconds(bandwidth))
    assert cache.seconds(bandwidth / 2) > text.seconds(bandwidth / 2)
    assert crossing(text, cache) == bandwidth


def test_what_is_smaller_and_quicker_is_always_the_faster(points: list[Point]) -> None:
    half, whole, _ = message_times(points)
    assert crossing(half, whole) is None


def test_without_text_there_is_nothing_to_cross(tmp_path: Path) -> None:
    store = communication_store(tmp_path / "study")
    finish_all(store, but=["text"])
    points = curve_points(evaluations(store))
    assert list(equal_bytes(points, store.lock.study.analysis)) == []
    assert all(t.result.arm != "text" for t in message_times(points))
