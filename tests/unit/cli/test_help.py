"""The command line explains itself, quickly."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest

from nullarm import __version__, errors
from nullarm.cli import COMMANDS, cli
from nullarm.errors import NullarmError
from support.command import nullarm, on_a_terminal

HEAVY = {
    "torch", "transformers", "peft", "accelerate", "pydantic", "pyarrow", "numpy", "scipy", "pandas", "statsmodels",
    "yaml", "psutil", "rich", "plotly",
}  # fmt: skip


def imported_by(code: str) -> set[str]:
    """Top-level packages that are imported once `code` has run in a fresh interpreter."""
    tell = "import json; sys.stderr.write(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    script = f"import sys\n{code}\n{tell}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_help_imports_nothing_heavy() -> None:
    code = "from nullarm.cli import main\nsys.argv = ['nullarm', '--help']\ntry: main()\nexcept SystemExit: pass"
    found = imported_by(code)
    assert "click" in found
    assert found & HEAVY == set()


def test_what_is_imported_is_seen() -> None:
    assert imported_by("import yaml") & HEAVY == {"yaml"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import nullarm") & HEAVY == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_help_that_the_list_shows(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert (command.help or "").splitlines()[0] == COMMANDS[name]
    assert command.name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_described(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert [o.name for o in command.params if isinstance(o, click.Option) and not o.help] == []
    outcome = nullarm(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert COMMANDS[name] in " ".join(outcome.out.split())


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_lists_every_command(arguments: tuple[str, ...]) -> None:
    outcome = nullarm_out(*arguments)
    for name, text in COMMANDS.items():
        assert f"{name} {text}" in outcome


def nullarm_out(*arguments: str) -> str:
    outcome = nullarm(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return " ".join(outcome.out.split())


def test_help_lists_every_exit_code() -> None:
    def codes(error: type[NullarmError]) -> set[int]:
        return {error.exit_code}.union(*(codes(child) for child in error.__subclasses__()))

    listed = {int(code) for code in re.findall(r"(\d+) [a-z]", nullarm_out("--help").split("Exit codes:")[1])}
    assert codes(NullarmError) - {1} <= listed


def test_exit_codes_are_distinct_but_for_kinds_of_one_error() -> None:
    tree = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, NullarmError)]
    for error in tree:
        same = [other for other in tree if other.exit_code == error.exit_code and other is not error]
        assert all(issubclass(other, error) or issubclass(error, other) for other in same), error


def test_the_version() -> None:
    assert nullarm_out("--version") == f"nullarm, version {__version__}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stats",), "error: no command 'stats' (did you mean 'status'?); valid: analyze, audit,"),
        (("--verbose",), "error: No such option"),
        (("run",), "error: Missing argument 'STUDY'"),
        (("run", "rehearsal", "--engine", "cloud"), "'cloud' is not one of 'local', 'inline', 'fake'"),
        (("run", "rehearsal", "--at-once", "0"), "0 is not in the range x>=1"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: tuple[str, ...], words: str) -> None:
    outcome = nullarm(*arguments)
    assert outcome.code == 2
    assert words in outcome.error


def test_colour_on_a_terminal_unless_it_is_not_wanted() -> None:
    assert b"\x1b[" in on_a_terminal("nosuch", TERM="xterm")
    plain = on_a_terminal("nosuch", TERM="xterm", NO_COLOR="1")
    assert b"\x1b[" not in plain
    assert plain.startswith(b"error: no command 'nosuch'")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m nullarm plan --schema | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{\n "$defs"', "")
