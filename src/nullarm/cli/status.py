"""`nullarm status`: how far a study is."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.options import directory_argument, json_option, print_json

STATES = ("done", "running", "pending", "failed", "blocked")


@click.command()
@directory_argument
@json_option
def status(directory: Path, as_json: bool) -> None:
    """Show how far a study is."""
    from nullarm.store.study_store import StudyStore

    store = StudyStore.open(directory)
    entries = store.journal.entries()
    counts = {state: sum(entry.state == state for entry in entries) for state in STATES}
    seconds, cost = store.journal.spent()
    if as_json:
        cells = [
            {
                "id": e.id,
                "label": e.label,
                "state": e.state,
                "attempt": e.attempt,
                "outcome": e.outcome,
                "message": e.message,
            }
            for e in entries
        ]
        print_json(
            {"study": store.lock.study.name, "counts": counts, "machine_seconds": seconds, "cost": cost, "cells": cells}
        )
        return
    click.echo(f"{store.lock.study.name}: " + " · ".join(f"{n} {state}" for state, n in counts.items() if n))
    click.echo(f"machine time {seconds / 3600:.2f} h, cost ${cost:.2f}")
    for entry in entries:
        if entry.state in ("running", "failed", "blocked"):
            click.echo(f"  {entry.state:<8} {entry.id[:8]}  {entry.label:<34} {entry.message or ''}".rstrip())
