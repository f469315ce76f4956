"""`nullarm resume`: go on where a study directory is."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.execute import detach, execute
from nullarm.cli.options import Launch, directory_argument, json_option, launch_options


@click.command()
@directory_argument
@launch_options
@click.option("--detach", "detached", is_flag=True, help="Run in the background, output in DIR/run.log.")
@click.option("--require-verdict", is_flag=True, help="Exit with 6 when the primary verdict is inconclusive.")
@json_option
def resume(directory: Path, launch: Launch, detached: bool, require_verdict: bool, as_json: bool) -> None:
    """Go on with a study directory."""
    from nullarm.store.study_store import StudyStore

    store = StudyStore.open(directory)
    if detached:
        detach(store.paths, launch, require_verdict=require_verdict)
        return
    execute(store, launch, require_verdict=require_verdict, as_json=as_json)
