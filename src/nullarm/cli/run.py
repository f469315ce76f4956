"""`nullarm run`: every open cell of a study, then verdicts and report."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.execute import detach, execute
from nullarm.cli.options import Launch, directory_option, json_option, launch_options, prepared_study, study_options


@click.command()
@study_options
@directory_option
@launch_options
@click.option("--detach", "detached", is_flag=True, help="Run in the background, output in DIR/run.log.")
@click.option("--require-verdict", is_flag=True, help="Exit with 6 when the primary verdict is inconclusive.")
@json_option
def run(
    study: str, overrides: tuple[str, ...], profile: str | None, directory: Path | None, launch: Launch,
    detached: bool, require_verdict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a study: every open cell, then verdicts and report."""
    from nullarm.conduct import default_directory, lay_down

    prepared = prepared_study(study, overrides, profile)
    root = directory or default_directory(prepared.study)
    store = lay_down(prepared, root)
    if detached:
        detach(store.paths, launch, require_verdict=require_verdict)
        return
    execute(store, launch, require_verdict=require_verdict, as_json=as_json)
