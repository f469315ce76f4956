"""`nullarm resume`: go on where a study directory is."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.execute import detach, execute
from nullarm.cli.options import directory_argument, engine_options, json_option


@click.command()
@directory_argument
@engine_options
@click.option("--detach", "detached", is_flag=True, help="Run in the background, output in DIR/run.log.")
@click.option("--require-verdict", is_flag=True, help="Exit with 6 when the primary verdict is inconclusive.")
@json_option
def resume(
    directory: Path, engine: str, at_once: int | None, detached: bool, require_verdict: bool, as_json: bool
) -> None:
    """Go on with a study directory."""
    from nullarm.store.study_store import StudyStore

    store = StudyStore.open(directory)
    if detached:
        detach(store.paths, engine, at_once, require_verdict=require_verdict)
        return
    execute(store, engine, at_once, require_verdict=require_verdict, as_json=as_json)
