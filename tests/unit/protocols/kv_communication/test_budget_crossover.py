"""Caches against text, at equal bytes and in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.protocols.kv_communication.budget.crossover import crossing, equal_bytes, message_times
from nullarm.protocols.kv_communication.budget.curve import Point, curve_points
from nullarm.protocols.kv_communication.budget.evaluations import evaluations
from nullarm.protocols.kv_communication.parameters import Link
from nullarm.store.study_store import StudyStore
from support.communications import communication_store, finish_all


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    store = communication_store(tmp_path_factory.mktemp("plain") / "study")
    finish_all(store)
    return store


@pytest.fixture(scope="module")
def points(store: StudyStore) -> list[Point]:
    return curve_points(evaluations(store))


def test_text_is_compared_with_the_cache_of_nearest_size(store: StudyStore, points: list[Point]) -> None:
    (pair,) = equal_bytes(points, store.lock.study.analysis)
    assert (pair.text.arm, pair.cache.arm) == ("text", "int8_p0p5_back")
    assert pair.compared.difference == pytest.approx(0.8 - 0.5)


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
