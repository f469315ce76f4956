"""`nullarm init`: a study file to start from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("path", metavar="[PATH]", type=click.Path(path_type=Path), default=Path("study.yaml"))
@click.option("--from", "source", default="rank_mechanism_tiny", show_default=True, help="Shipped study to copy.")
def init(path: Path, source: str) -> None:
    """Write a study file to start from."""
    from nullarm.errors import UsageError
    from nullarm.store.atomic import write_bytes
    from nullarm.study.shipped import study_path

    if path.exists():
        raise UsageError(f"{path} exists already", next_command="name another file: nullarm init OTHER.yaml")
    write_bytes(path, study_path(source).read_bytes())
    click.echo(f"wrote {path}; next: nullarm plan {path}")
