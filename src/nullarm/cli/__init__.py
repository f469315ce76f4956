"""The command line: one file per command, each a thin layer over the library."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

import nullarm
from nullarm.errors import Interrupted, NullarmError, UsageError, nearest

COMMANDS = {
    "analyze": "Judge the declared contrasts on what a study directory holds.",
    "audit": "Audit the singular spectra of a PEFT adapter.",
    "bench": "Time two arms or models against each other, and judge timings.",
    "demo": "Run the built-in tiny study, from training to verdicts and report.",
    "init": "Write a study file to start from.",
    "kv": "Run communication studies by their runbook's names, and draw budget curves.",
    "logs": "Print what a cell has printed.",
    "new": "Make an experiment file from the template.",
    "plan": "Show cells, power, time, disk and cost before anything runs.",
    "power": "What a design can detect, and how many seeds it takes.",
    "preflight": "Check this machine against a plan.",
    "report": "Write the HTML and Markdown report of a study directory.",
    "residual": "Summarise the results of residual comparisons.",
    "resume": "Go on with a study directory.",
    "run": "Run a study: every open cell, then verdicts and report.",
    "status": "Show how far a study is.",
}
"""Every command with its short help, so that `--help` imports none of them; a test holds both together."""


class _LazyGroup(click.Group):
    """Imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"nullarm.cli.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"nullarm.cli.{cmd_name} has no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}", valid=sorted(COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.pass_context
@click.version_option(nullarm.__version__, prog_name="nullarm")
def cli(context: click.Context) -> None:
    """Controlled experiments on the insides and the compression of language models.

    Exit codes: 0 ok · 2 usage · 3 preflight · 4 cells failed · 5 invalid or contaminated · 6 inconclusive (with
    --require-verdict) · 7 budget or runtime limit · 8 integrity · 9 undertrained · 10 model · 11 another study's
    directory · 12 newer format · 13 storage · 14 adapter · 15 dataset · 16 message ·
    75 preempted · 130 interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Entry point: every error is one line on standard error and an exit code."""
    try:
        code = cli.main(prog_name="nullarm", standalone_mode=False)
    except NullarmError as error:
        _complain(str(error), "" if error.next_command else _help_of(sys.argv[1:]))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _complain(error.format_message().rstrip("."), _help_of(sys.argv[1:]))
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; what was committed is kept", next_command="nullarm resume DIR")
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # the reader of standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("NULLARM_TRACEBACK"):
            raise
        _complain(
            f"internal error: {type(error).__name__}: {error}",
            next_command="again with NULLARM_TRACEBACK=1, and report it",
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _help_of(words: list[str]) -> str:
    """The help of the command, and subcommand, that was typed, or of all of them."""
    known: list[str] = []
    command: click.Command | None = cli
    for word in words:
        command = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if command is None:
            break
        known.append(word)
    return " ".join(["nullarm", *known, "--help"])


def _complain(problem: str, next_command: str = "") -> None:
    line = " ".join(problem.split())
    label = "error: " if "NO_COLOR" in os.environ else click.style("error: ", fg="red", bold=True)
    click.echo(label + line + (f"; next: {next_command}" if next_command else ""), err=True)
