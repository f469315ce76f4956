"""`nullarm demo`: the built-in tiny study, whole."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.execute import execute
from nullarm.cli.options import Launch, directory_option, launch_options

STUDY = "rank_mechanism_tiny"


@click.command()
@directory_option
@launch_options
def demo(directory: Path | None, launch: Launch) -> None:
    """Run the built-in tiny study, from training to verdicts and report."""
    from nullarm.conduct import default_directory, lay_down, prepare

    prepared = prepare(STUDY)
    store = lay_down(prepared, directory or default_directory(prepared.study))
    click.echo(prepared.study.question, err=True)
    execute(store, launch, require_verdict=False, as_json=False)
