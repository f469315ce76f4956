from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import pytest

from nullarm.errors import UsageError
from nullarm.training.signals import STOP_SIGNALS, stop_on_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_the_flag_instead_of_ending_the_process(number: signal.Signals) -> None:
    with stop_on_signals() as flag:
        assert not flag()
        os.kill(os.getpid(), number)
        assert flag()
        assert flag.received == number.name


def test_the_first_signal_is_remembered() -> None:
    with stop_on_signals() as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.received == "SIGUSR1"


def test_handlers_are_as_before_even_after_an_error() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError("not called")

    before = signal.signal(signal.SIGUSR1, own)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with suppress(ValueError), stop_on_signals():
            assert signal.getsignal(signal.SIGUSR1) is not own
            raise ValueError("inside")
        assert signal.getsignal(signal.SIGUSR1) is own
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_only_the_named_signals_are_taken() -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(signal.SIGUSR1):
        assert signal.getsignal(signal.SIGTERM) is terminate


def test_outside_the_main_thread_it_says_so() -> None:
    caught: list[BaseException] = []

    def enter() -> None:
        try:
            with stop_on_signals():
                pass
        except UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread only" in str(caught[0])
