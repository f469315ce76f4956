"""Signals that ask a run to stop become a flag, honoured at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nullarm.errors import UsageError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers and spot markets send before they kill."""


class StopFlag:
    """False until a signal has arrived; call it to ask."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._received is not None

    @property
    def received(self) -> str:
        """Name of the first signal that arrived, or an empty string."""
        return self._received.name if self._received else ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = self._received or signal.Signals(number)


@contextmanager
def stop_on_signals(*signals: signal.Signals) -> Iterator[StopFlag]:
    """While inside, `signals` (SIGTERM and SIGUSR1 if none are named) set a flag; afterwards handlers are as before.

    Raises:
        UsageError: Outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("stop_on_signals works in the main thread only", value=threading.current_thread().name)
    flag = StopFlag()
    before = {number: signal.getsignal(number) for number in signals or STOP_SIGNALS}
    try:
        for number in before:
            signal.signal(number, flag._handle)
        yield flag
    finally:
        for number, handler in before.items():
            # None: installed by C code, which Python can neither name nor put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
