"""Options that several commands share, and how they turn into a prepared study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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


def engine_options(function: FunctionT) -> FunctionT:
    """Where cells run."""
    for decorate in (
        click.option(
            "--at-once", type=click.IntRange(1), help="Cells at a time; all shares of the machine when left out."
        ),
        click.option(
            "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Where cells run."
        ),
    ):
        function = decorate(function)
    return function


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))
