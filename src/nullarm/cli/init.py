"""`nullarm init`: a study file to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from nullarm.cli.options import say_not_carried


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
    write_bytes(path, _named(_study_text(study_path(source)), path.stem))
    click.echo(f"wrote {path}; next: nullarm plan {path}")


def _study_text(source: Path) -> bytes:
    """The study file as it is, or the translation of a runbook's own file; what that cannot carry is said."""
    from nullarm.protocols.runbooks import translation_of
    from nullarm.study.load import load_study

    translation = translation_of(source)
    if translation is None:
        load_study(source)  # refuses what is neither
        return source.read_bytes()
    say_not_carried(translation.not_carried)
    return translation.text(source.name).encode()


def _named(text: bytes, name: str) -> bytes:
    """The study under the name of its file, if that can be one, so that it gets a directory of its own."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name):
        return text
    return re.sub(rb"(?m)^name:.*$", b"name: " + name.encode(), text, count=1)
