from __future__ import annotations

from nullarm.report import VerdictCard
from nullarm.report.strip import strip


def card(estimate: float | None, interval: tuple[float, float] | None, margin: float | None = 0.01) -> VerdictCard:
    return VerdictCard(name="n", verdict="CONFIRMED", reason="r", estimate=estimate, interval=interval, margin=margin)


def test_places_are_in_order_and_on_the_strip() -> None:
    s = strip(card(0.03, (0.02, 0.04)))
    assert s is not None
    assert s.estimate is not None
    assert s.bar is not None
    assert s.band is not None
    assert 0 < s.band[0] < s.zero < s.band[0] + s.band[1] < s.bar[0] < s.estimate < sum(s.bar) < 100
    assert [text for _, text in s.ticks] == ["−0.01", "0", "+0.01"]


def test_an_infinite_end_stops_at_the_edge() -> None:
    s = strip(card(0.03, (0.02, float("inf"))))
    assert s is not None
    assert s.bar is not None
    assert sum(s.bar) == 100


def test_a_narrow_margin_has_no_labels_of_its_own() -> None:
    s = strip(card(3.0, (2.0, 4.0)))
    assert s is not None
    assert [text for _, text in s.ticks] == ["0"]


def test_nothing_to_draw() -> None:
    assert strip(card(None, None)) is None
    assert strip(card(float("nan"), (float("-inf"), float("inf")))) is None
    flat = strip(card(0.0, (0.0, 0.0), None))
    assert flat is not None
    assert flat.zero == 50
