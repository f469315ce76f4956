from __future__ import annotations

import numpy as np
import pytest
import torch

from nullarm.bench import sentinel as module
from nullarm.bench.instruments import instruments
from nullarm.bench.sentinel import LONG_ENOUGH_S, Sentinel
from nullarm.bench.stopwatch import HostStopwatch

CPU = torch.device("cpu")


def test_a_reading_is_two_times_above_what_launching_costs() -> None:
    reading = Sentinel(CPU)()
    assert reading.gemm_s is not None
    assert reading.copy_s is not None
    assert min(reading.gemm_s, reading.copy_s) > LONG_ENOUGH_S / 10  # the machine may be faster than at the start
    assert max(reading.gemm_s, reading.copy_s) < 60


def test_sizes_grow_until_the_work_takes_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Clockwork(HostStopwatch):
        """A millisecond for the third size."""

        def intervals_s(self) -> list[float]:
            return [LONG_ENOUGH_S * len(made) / 3] * 7

    def work(size: int, device: torch.device) -> module.Work:
        made.append(size)
        return lambda: None

    monkeypatch.setattr(module, "stopwatch", lambda device: Clockwork())
    monkeypatch.setattr(module, "_gemm", work)
    monkeypatch.setattr(module, "_copy", lambda mib, device: lambda: None)
    Sentinel(CPU)
    assert made == list(module.GEMM_SIDES[:3])


def test_one_hiccup_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = Sentinel(CPU)

    class Hiccup(HostStopwatch):
        def intervals_s(self) -> list[float]:
            return [0.002] * 4 + [0.5] * 3

    monkeypatch.setattr(module, "stopwatch", lambda device: Hiccup())
    assert sentinel().gemm_s == 0.002


def test_it_does_the_work_it_times_and_leaves_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    before = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    with instruments(CPU) as opened, opened.watch() as watch:
        assert opened.sentinel().copy_s
    assert watch.weather.gpu is None
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state(legacy=False)["state"]["pos"] == before  # noqa: NPY002
