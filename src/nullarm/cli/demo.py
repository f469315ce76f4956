"""`nullarm demo`: the built-in tiny study, whole."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.execute import execute
from nullarm.cli.options import directory_option, engine_options

STUDY = "rank_mechanism_tiny"


@click.command()
@directory_option
@engine_options
def demo(directory: Path | None, engine: str, at_once: int | None) -> None:
    """Run the built-in tiny study, from training to verdicts and report."""
    from nullarm.conduct import default_directory, lay_down, prepare

    prepared = prepare(STUDY)
    store = lay_down(prepared, directory or default_directory(prepared.study))
    click.echo(prepared.study.question, err=True)
    execute(store, engine, at_once, require_verdict=False, as_json=False)
