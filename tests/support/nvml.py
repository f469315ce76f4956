"""A driver for GPUs that are not there, whose calls fail on demand."""

from __future__ import annotations

from typing import Any


class NvmlError(Exception):
    """What the fake driver raises."""


class FakeNvml:
    """The part of NVML that both opening it and asking it need; a test adds what its subject asks.

    Attributes:
        failing: Names of calls that fail.
        is_open: Whether it was initialised and not shut down since.
    """

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *failing: str) -> None:
        self.failing = set(failing)
        self.is_open = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("nvml") or name not in self.failing:
            return found

        def fail(*arguments: object) -> None:
            raise NvmlError(name)

        return fail

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False
