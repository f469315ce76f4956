from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from nullarm.errors import IntegrityError
from nullarm.protocols.residual.report.hotspots import hotspots, layer_shares
from nullarm.protocols.residual.runs import multi_pass, single_pass
from nullarm.store.record import FinishedCell
from support import captures
from support.captures import HOTSPOT, TOKENS, VARIANTS, capture_store, finish_capture, scalar

PAIR = single_pass().comparisons[0].name


@pytest.fixture
def finished(tmp_path: Path) -> FinishedCell:
    store = capture_store(tmp_path / "study")
    return finish_capture(store, next(iter(store.plan)))


def places() -> list[tuple[int, str, int, int]]:
    """(prompt, variant, layer, position), in the order of the tables."""
    return [
        (prompt, variant, layer, position)
        for prompt, variant, layer in product(range(len(TOKENS)), VARIANTS, range(-1, captures.BLOCKS))
        for position in range(len(TOKENS[prompt]))
    ]


def value_at(place: tuple[int, str, int, int], metric: str, record: str = PAIR) -> float:
    prompt, variant, layer, position = place
    found = scalar(prompt, variant, record, layer, position, metric)
    assert found is not None
    return found


def test_the_planted_place_is_the_hottest(finished: FinishedCell) -> None:
    (first,) = hotspots(finished, "kl_div", 1)
    assert {name: getattr(first, name) for name in HOTSPOT} == HOTSPOT
    assert first.token == f"word{first.position}"


def test_hotspots_are_the_largest_of_all_places_in_order(finished: FinishedCell) -> None:
    expected = sorted(places(), key=lambda place: -value_at(place, "direct_diff"))
    found = hotspots(finished, top=7)
    assert [(spot.prompt, spot.variant, spot.layer, spot.position) for spot in found] == expected[:7]
    assert [spot.value for spot in found] == [value_at(place, "direct_diff") for place in expected[:7]]
    assert len(hotspots(finished, top=10_000)) == len(places())


def test_layer_shares_are_of_the_summed_squares(finished: FinishedCell) -> None:
    squares = {layer: 0.0 for layer in range(-1, captures.BLOCKS)}
    for place in places():
        squares[place[2]] += value_at(place, "direct_diff") ** 2
    shares = layer_shares(finished)
    assert shares == pytest.approx({layer: value / sum(squares.values()) for layer, value in squares.items()})
    assert sum(shares.values()) == pytest.approx(1)


def test_a_change_planted_in_one_layer_is_located_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*where: object) -> float | None:
        *_, layer, _, metric = where
        return float(layer == 1) if metric == "direct_diff" else 0.0

    monkeypatch.setattr(captures, "scalar", planted)
    store = capture_store(tmp_path / "study")
    finished = finish_capture(store, next(iter(store.plan)))
    assert layer_shares(finished) == {-1: 0.0, 0: 0.0, 1: 1.0}
    assert {spot.layer for spot in hotspots(finished, top=100)} == {1}
    assert hotspots(finished, "js") == []


def test_without_a_change_there_is_neither_hotspot_nor_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "scalar", lambda *where: 0.0)
    store = capture_store(tmp_path / "study")
    finished = finish_capture(store, next(iter(store.plan)))
    assert (layer_shares(finished), hotspots(finished)) == ({}, [])


def test_a_refused_metric_has_neither(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study")
    finished = finish_capture(store, next(iter(store.plan)), refused=["direct_diff"])
    assert (layer_shares(finished), hotspots(finished)) == ({}, [])
    assert len(hotspots(finished, "js")) == 5


def test_of_a_factorial_the_base_is_compared_with_the_fine_tuned_model(tmp_path: Path) -> None:
    store = capture_store(tmp_path / "study", passes=multi_pass())
    finished = finish_capture(store, next(iter(store.plan)), passes=multi_pass())
    largest = max(value_at(place, "js", "BB-SS") for place in places())
    assert hotspots(finished, "js", 1)[0].value == largest


def test_a_damaged_table_is_refused(finished: FinishedCell) -> None:
    path = finished.artefact("scalars")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"artefact 'scalars' of cell .* is not what its hash says"):
        layer_shares(finished)
