"""What the pages say must hold: commands exist, code runs, links lead somewhere, tables agree with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from pages import PAGES, ROOT, Block, anchors, blocks, code_words, commands, links, table_rows, text_of

from nullarm import errors
from nullarm.cli import COMMANDS, cli
from nullarm.conduct import prepare
from nullarm.protocols.residual.tables import METRICS
from nullarm.stats.verdict import Verdict
from nullarm.store.study_store import analysis_hash
from nullarm.study.spec import Study
from nullarm.study.strict_yaml import parse

README = ROOT / "README.md"
NULLARM_LINES = sorted({tuple(words[1:]) for words in commands("nullarm") if words[1] != "--help"})


def parse_command(words: tuple[str, ...]) -> None:
    """Take a command line apart as the program would, without running it."""
    root = click.Context(cli, info_name="nullarm")
    command = cli.get_command(root, words[0])
    if command is None:
        raise click.UsageError(f"no command {words[0]}")
    command.make_context(words[0], list(words[1:]), parent=root)


@pytest.mark.parametrize("words", NULLARM_LINES, ids=" ".join)
def test_every_command_line_parses(words: tuple[str, ...]) -> None:
    try:
        parse_command(words)
    except click.exceptions.Exit:
        assert {"--help", "--schema"} & set(words)  # these print and leave
    except click.MissingParameter:
        assert len(words) == 1  # a command that is named in a sentence


def test_enough_command_lines_were_found() -> None:
    assert len(NULLARM_LINES) > 30
    assert {words[0] for words in NULLARM_LINES} == set(COMMANDS)


@pytest.mark.parametrize("words", [("fly",), ("run", "study.yaml", "--fast"), ("init", "a", "b")], ids=" ".join)
def test_a_wrong_command_line_is_noticed(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError, match=r"no command fly|No such option.*--fast|unexpected extra argument"):
        parse_command(words)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {words[1] for words in commands("make")}
    assert {"demo", "test", "lint", "docs"} <= named
    assert named <= targets


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}), ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one page belong together."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_blocks_are_what_a_study_file_may_hold(block: Block) -> None:
    data = parse(block.text, str(block)).data
    if "protocol" in data:
        Study.model_validate(data)
        shipped = (ROOT / "studies" / f"{data['name']}.yaml").read_text()
        assert data == parse(shipped, "shipped").data
    else:
        assert data.keys() <= {*Study.model_fields, "extends", "task"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_paths_of_this_repository_exist(page: Path) -> None:
    inside = re.compile(r"(src|tests|docs|studies|benchmarks)/[\w./-]*")
    for word in code_words(page):
        if inside.fullmatch(word):
            assert (ROOT / word).exists(), f"{word} is not there"


def test_exit_codes_are_those_of_the_code() -> None:
    written = {(int(code), name) for code, names, _ in table_rows(README, "Exit codes") for name in _names(names)}
    assert written == {(cls.exit_code, cls.__name__) for cls in _tree(errors.NullarmError)}
    assert all(meaning for _, _, meaning in table_rows(README, "Exit codes"))


def test_verdicts_are_those_of_the_code() -> None:
    guide = ROOT / "docs" / "guide" / "verdicts.md"
    assert [_names(row[0])[0] for row in table_rows(README, "Verdicts")] == [v.value for v in Verdict]
    assert all(f"| `{verdict.value}` |" in text_of(guide) for verdict in Verdict)


def test_the_closing_block_is_that_of_the_shipped_study() -> None:
    noted = re.search(r"<!-- plan (\w+) analysis (\w+):", text_of(README))
    assert noted
    prepared = prepare("rank_mechanism_tiny")
    now = (prepared.plan.hash[:12], analysis_hash(prepared.study)[:12])
    assert noted.groups() == now, "the study has changed: run `nullarm demo`, paste its closing block, note the hashes"


def test_commands_are_those_of_the_code() -> None:
    rows = table_rows(README, "A study of your own")
    assert {_names(name)[0]: text for name, text in rows} == {f"nullarm {n}": text for n, text in COMMANDS.items()}


def test_decisions_are_numbered_and_say_something() -> None:
    notes = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(note.name[:4]) for note in notes] == list(range(1, len(notes) + 1))
    for note in notes:
        assert text_of(note).startswith(f"# {note.name[:4]}: ")
        assert "**Decision.**" in text_of(note)
        assert "**Why" in text_of(note)


def test_the_changelog_has_one_outcome_a_line() -> None:
    unreleased = text_of(ROOT / "CHANGELOG.md").split("## Unreleased\n")[1].split("\n## ")[0].strip().splitlines()
    assert unreleased
    assert all(line.startswith("- ") and line.endswith(".") for line in unreleased)


def test_hooks_are_the_checks_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]


def _tree(cls: type[errors.NullarmError]) -> Iterator[type[errors.NullarmError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_residual_columns_are_those_of_the_code() -> None:
    page = text_of(ROOT / "docs" / "guide" / "residual.md")
    table = page.split("Metrics are columns of")[1].split("Under the runbook")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in _names(row)} == set(METRICS)
