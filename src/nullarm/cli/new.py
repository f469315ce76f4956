"""`nullarm new`: an experiment file of one's own, with the configurations it reads and their prompts."""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path

import click

TEMPLATE = "template_experiment"
_HERE = Path(__file__).resolve()
_PLACES = (_HERE.parents[1] / "shipped_experiments", _HERE.parents[3])
"""In an installed wheel, and in a checkout: what holds `experiments/` and `configs/`."""
_READ = ("configs/*_config.yaml", "experiments/prompts/*.txt")
"""What an experiment reads: its configurations, and the prompts that these name."""


@click.command()
@click.argument("name")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), default=Path("experiments"), show_default=True,
    help="Where the file goes.",
)  # fmt: skip
def new(name: str, directory: Path) -> None:
    """Make an experiment file from the template."""
    from nullarm.errors import UsageError
    from nullarm.store.atomic import make_directory, write_bytes

    if not name.isidentifier() or iskeyword(name):
        raise UsageError(
            "an experiment is called what a Python module may be called",
            value=name,
            valid="letters, digits and _, no digit first",
            next_command="nullarm new my_experiment",
        )
    path = directory / f"{name}.py"
    if path.exists():
        raise UsageError(f"{path} exists already", next_command="nullarm new OTHER_NAME")
    shipped = next(place for place in _PLACES if (place / "experiments" / f"{TEMPLATE}.py").is_file())
    text = (shipped / "experiments" / f"{TEMPLATE}.py").read_text("utf-8").replace(TEMPLATE, name)
    files = {path: text.encode()}
    for theirs in (found for pattern in _READ for found in sorted(shipped.glob(pattern))):
        if not (mine := theirs.relative_to(shipped)).exists():
            files[mine] = theirs.read_bytes()
    for file, data in files.items():
        make_directory(file.parent)
        write_bytes(file, data)
        click.echo(f"wrote {file}")
    click.echo(f"next: DEV_MODE=True python {path}, or open it and run it cell by cell; then say in it what you ask")
