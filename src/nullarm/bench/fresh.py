"""Runs in processes of their own: nothing that one run leaves behind is there for the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from nullarm.bench.subjects import Subject, Timing
from nullarm.errors import CellsFailed


@dataclass(frozen=True)
class FreshProcess:
    """What a `Session` runs under `fresh_process`.

    Attributes:
        make: Makes the subject for `treatment`, `control` or `slowed` in the new process; a function of a module, or a
            `functools.partial` of one, so that another process can find it.
        tokens: Tokens of a run.
    """

    make: Callable[[str], Subject]
    tokens: int

    def __call__(self, arm: str) -> Timing:
        """Start a process, make the subject there, run it once, and wait for the process to end.

        Raises:
            CellsFailed: The process died. What the subject raised is raised here.
        """
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(_run, self.make, arm, self.tokens).result()
            except BrokenProcessPool as error:
                raise CellsFailed(
                    f"the process that ran {arm} died", next_command="look at its memory, or use procedure: abba"
                ) from error


def _run(make: Callable[[str], Subject], arm: str, tokens: int) -> Timing:
    return make(arm).run(tokens)
