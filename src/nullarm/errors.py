"""Every error that nullarm raises on purpose, and the exit code each one ends a command with.

::

    NullarmError                 1
    ├── UsageError               2   the command line or the study file is wrong
    │   └── StudyError           2   ... the study file, in particular
    ├── PreflightError           3   the machine is not ready
    ├── CellsFailed              4   cells ended without a record
    ├── InvalidResult            5   a control failed, data are contaminated or incomplete
    ├── Inconclusive             6   no verdict, and one was required
    ├── BudgetExceeded           7   the cost or runtime limit is reached
    ├── IntegrityError           8   bytes are not what their hash, or a host what its key, says
    │   └── LeaseLost            8   a later attempt owns the cell; this one may not write
    ├── Undertrained             9   the probe gate failed
    ├── ModelError              10   a model is missing, unreadable or of an unknown kind
    ├── ForeignStudyError       11   the directory holds another study
    ├── FormatError             12   written by a newer nullarm
    ├── StorageError            13   the disk is full, read-only or gone
    ├── AdapterError            14   an adapter lacks tensors or contradicts its configuration
    ├── DatasetError            15   a dataset is empty, missing or malformed
    ├── MessageError            16   a message between models is truncated, damaged or of another version
    ├── Preempted               75   asked to stop; requeue me
    └── Interrupted            130   Ctrl-C
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class NullarmError(Exception):
    """An error with a culprit, its value, the valid choices and the next command, on one line.

    Args:
        problem: What is wrong, naming the culprit (file, key, cell).
        value: The offending value, when there is one.
        valid: The valid choices, or a sentence about them.
        next_command: What to type next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, problem: str, *, value: object = None, valid: Iterable[object] | str = (), next_command: str = ""
    ) -> None:
        self.problem = problem
        self.value = value
        self.valid = valid if isinstance(valid, str) else ", ".join(str(v) for v in valid)
        self.next_command = next_command
        super().__init__(problem)

    @property
    def kind(self) -> str:
        """Class name, the stable word for machines (`--json`)."""
        return type(self).__name__

    def __str__(self) -> str:
        parts = [self.problem.rstrip(".")]
        if self.value is not None:
            parts.append(f"got {_short(self.value)}")
        if self.valid:
            parts.append(f"valid: {self.valid}")
        if self.next_command:
            parts.append(f"next: {self.next_command}")
        return " ".join("; ".join(parts).split())


class UsageError(NullarmError):
    """The command line is wrong."""

    exit_code = 2


class StudyError(UsageError):
    """The study file is wrong."""


class PreflightError(NullarmError):
    """The machine is not ready for the plan."""

    exit_code = 3


class CellsFailed(NullarmError):
    """Cells ended without a record."""

    exit_code = 4


class InvalidResult(NullarmError):
    """A control failed, or the data are contaminated or incomplete."""

    exit_code = 5


class Inconclusive(NullarmError):
    """No verdict was reached and `--require-verdict` asked for one."""

    exit_code = 6


class BudgetExceeded(NullarmError):
    """The cost or runtime limit is reached."""

    exit_code = 7


class IntegrityError(NullarmError):
    """Bytes do not have the hash they should have, or a host not its key."""

    exit_code = 8


class LeaseLost(IntegrityError):
    """A later attempt owns the cell; this one may not write to it any more."""


class Undertrained(NullarmError):
    """The probe did not pass its gate, so nothing that follows would mean anything."""

    exit_code = 9


class ModelError(NullarmError):
    """A model is missing, unreadable or of an unknown kind."""

    exit_code = 10


class ForeignStudyError(NullarmError):
    """The study directory belongs to another study."""

    exit_code = 11


class FormatError(NullarmError):
    """A file was written by a newer nullarm, or is not one of its files."""

    exit_code = 12


class StorageError(NullarmError):
    """The disk is full, read-only or gone. What was committed stays valid."""

    exit_code = 13


class AdapterError(NullarmError):
    """An adapter lacks tensors or contradicts its configuration."""

    exit_code = 14


class DatasetError(NullarmError):
    """A dataset is empty, missing or malformed."""

    exit_code = 15


class MessageError(NullarmError):
    """A message between models is truncated, damaged or of another version, or holds what cannot be sent."""

    exit_code = 16


class Preempted(NullarmError):
    """Asked to stop and stopped at a safe point; the cell resumes where it was."""

    exit_code = 75


class Interrupted(NullarmError):
    """Ctrl-C: the study can be resumed."""

    exit_code = 130


def nearest(word: str, choices: Iterable[str]) -> str:
    """A `did you mean` clause for a misspelt word, or an empty string."""
    found = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _short(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
