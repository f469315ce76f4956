"""Write the pages under `docs/reference/` that follow from the code: `python docs/generate.py`, or `make docs`."""

from __future__ import annotations

import json
from inspect import cleandoc
from pathlib import Path

import click

from nullarm.cli import cli
from nullarm.protocols.schema import study_schema

REFERENCE = Path(__file__).parent / "reference"
INTRODUCTION = """\
Every command takes `--help`. Results go to standard output, progress and errors to standard error.
The meaning of each exit code is in the [README](../../README.md#exit-codes)."""


def cli_reference() -> str:
    """Every command with its usage, arguments and options, as Markdown."""
    context = click.Context(cli, info_name="nullarm", **cli.context_settings)
    parts = [
        "# Commands",
        "<!-- Written by `make docs` from the code; edit the help texts there. -->",
        INTRODUCTION,
    ]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is None:
            raise LookupError(name)
        parts += _command(command, click.Context(command, info_name=name, parent=context))
    return "\n\n".join(parts) + "\n"


def schema_text() -> str:
    """JSON Schema of the study file."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


PAGES = {REFERENCE / "cli.md": cli_reference, REFERENCE / "study.schema.json": schema_text}
"""Every generated file, and what makes its text."""


def _command(command: click.Command, context: click.Context) -> list[str]:
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    options = [param for param in command.params if isinstance(param, click.Option)]
    rows = [record for option in options if (record := option.get_help_record(context))]
    table = ["| option | meaning |", "|---|---|", *(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows)]
    parts = [f"## {context.command_path}", cleandoc(command.help or ""), f"```\n{usage}\n```"]
    parts += ["\n".join(table)] if rows else []
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        parts += _command(inner, click.Context(inner, info_name=name, parent=context))
    return parts


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write all pages."""
    for path, text in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text(), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
