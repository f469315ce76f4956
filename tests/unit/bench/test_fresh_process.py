from __future__ import annotations

import os
from functools import partial

import pytest

from nullarm.bench.fresh import FreshProcess
from nullarm.bench.subjects import Subject, Timing
from nullarm.errors import CellsFailed, UsageError


class Speaker(Subject):
    """Says in which process it ran."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, tokens: int) -> Timing:
        if self.name == "slowed":
            raise UsageError("the subject cannot write so many", value=tokens)
        if self.name == "treatment":
            os._exit(9)
        return Timing(float(os.getpid()), (0.5,) * tokens, tokens)


def make(arm: str, *, prefix: str = "") -> Subject:
    return Speaker(prefix + arm)


def test_every_run_has_a_process_of_its_own() -> None:
    run = FreshProcess(partial(make, prefix=""), tokens=3)
    first, second = run("control"), run("control")
    assert (first.tokens, first.latencies_s) == (3, (0.5, 0.5, 0.5))
    assert len({first.prefill_s, second.prefill_s, float(os.getpid())}) == 3


def test_what_the_subject_raises_is_raised_here() -> None:
    with pytest.raises(UsageError, match="cannot write so many; got 3"):
        FreshProcess(make, tokens=3)("slowed")


def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(CellsFailed, match="the process that ran treatment died; next: look at its memory"):
        FreshProcess(make, tokens=3)("treatment")
