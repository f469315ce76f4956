"""Options that several commands share, and how they turn into a prepared study."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nullarm.errors import UsageError

if TYPE_CHECKING:
    from nullarm.conduct import Prepared

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ENGINES = ("local", "inline", "fake")


def study_options(function: FunctionT) -> FunctionT:
    """The study file and everything that changes it."""
    for decorate in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, dotted; repeatable."
        ),
        click.option("--profile", metavar="NAME", help="Apply a profile of the study file."),
        click.argument("study", metavar="STUDY"),
    ):
        function = decorate(function)
    return function


def directory_option(function: FunctionT) -> FunctionT:
    """The study directory."""
    return click.option(
        "--dir", "directory", type=click.Path(path_type=Path), help="Study directory; runs/NAME when left out."
    )(function)


def directory_argument(function: FunctionT) -> FunctionT:
    """The study directory, as the argument."""
    return click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))(function)


def json_option(function: FunctionT) -> FunctionT:
    """Machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(function)


@dataclass(frozen=True)
class Launch:
    """Where cells run, and which of them."""

    engine: str
    at_once: int | None
    device: str | None
    entries: tuple[str, ...]
    skip_existing: bool

    @property
    def words(self) -> list[str]:
        """The same as options of a command line."""
        words = ["--engine", self.engine]
        words += ["--at-once", str(self.at_once)] if self.at_once else []
        words += ["--device", self.device] if self.device else []
        words += ["--entries", ",".join(self.entries)] if self.entries else []
        return [*words, "--skip-existing"] if self.skip_existing else words


def launch_options(function: FunctionT) -> FunctionT:
    """Where cells run, and which of them, as one argument `launch`."""

    @wraps(function)
    def collected(
        *args: Any, engine: str, at_once: int | None, device: str | None, entries: tuple[str, ...],
        skip_existing: bool, **more: Any,
    ) -> Any:  # fmt: skip
        named = tuple(name for entry in entries for name in entry.split(",") if name)
        if entries and not named:
            raise UsageError("--entries names no arm", value=",".join(entries), valid="arms of the study, by name")
        return function(*args, launch=Launch(engine, at_once, device, named, skip_existing), **more)

    decorated: Any = collected
    for decorate in (
        click.option(
            "--skip-existing", is_flag=True,
            help="Check every artefact of finished cells against its hash first; damaged cells run again.",
        ),
        click.option(
            "--entries", multiple=True, metavar="ARM[,ARM…]", help="Run only the cells of these arms; repeatable."
        ),
        click.option("--device", metavar="NAME", help="Run on cpu, cuda, or these GPUs: cuda:0 or cuda:0,1."),
        click.option(
            "--at-once", type=click.IntRange(1), help="Cells at a time; all shares of the machine when left out."
        ),
        click.option(
            "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Where cells run."
        ),
    ):  # fmt: skip
        decorated = decorate(decorated)
    result: FunctionT = decorated
    return result


def prepared_study(study: str, overrides: tuple[str, ...], profile: str | None) -> Prepared:
    """The study that a command was given, prepared; what its file says in vain is said."""
    from nullarm.conduct import prepare

    prepared = prepare(study, overrides=overrides, profile=profile)
    say_not_carried(prepared.not_carried)
    return prepared


def say_not_carried(not_carried: Mapping[str, str]) -> None:
    """One line on standard error for each key of a runbook's own file that its study does not carry."""
    for key, reason in not_carried.items():
        click.echo(f"not carried: {key}: {reason}", err=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))
