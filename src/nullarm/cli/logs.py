"""`nullarm logs`: what a cell has printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nullarm.cli.options import directory_argument

if TYPE_CHECKING:
    from nullarm.store.study_store import StudyStore

FOLLOW_S = 0.5


@click.command()
@directory_argument
@click.argument("cell", metavar="CELL")
@click.option("-f", "--follow", is_flag=True, help="Go on until the cell is over.")
def logs(directory: Path, cell: str, follow: bool) -> None:
    """Print what a cell has printed."""
    from nullarm.engines.base import read_log
    from nullarm.store.study_store import StudyStore

    store = StudyStore.open(directory)
    cell_id = _find(store, cell)
    shown = ""
    while True:
        store.observe(cell_id)
        state = next(e.state for e in store.journal.entries() if e.id == cell_id)
        text = read_log(directory, cell_id)  # after the state, so that the last words of a cell are not missed
        click.echo(text[len(shown) :], nl=False)
        shown = text
        if not follow or state not in ("running", "pending"):
            return
        time.sleep(FOLLOW_S)


def _find(store: StudyStore, wanted: str) -> str:
    """The cell whose id starts with `wanted`, or whose label is `wanted`."""
    from nullarm.errors import UsageError, nearest

    entries = store.journal.entries()
    found = [e.id for e in entries if e.id.startswith(wanted) or e.label == wanted]
    if len(found) == 1:
        return found[0]
    labels = [e.label for e in entries]
    problem = "is ambiguous" if found else f"is not a cell of this study{nearest(wanted, labels)}"
    raise UsageError(
        f"{wanted!r} {problem}",
        valid="the start of an id, or a label",
        next_command=f"nullarm status {store.paths.root} --json",
    )
