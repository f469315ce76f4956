"""`nullarm report`: the report of a study directory."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.options import directory_argument


@click.command()
@directory_argument
def report(directory: Path) -> None:
    """Write the HTML and Markdown report of a study directory."""
    from nullarm.conduct import conclude
    from nullarm.store.study_store import StudyStore

    store = StudyStore.open(directory)
    conclude(store)
    click.echo(f"{store.paths.report_html}\n{store.paths.report_markdown}")
