"""`nullarm kv`: communication studies by the options and environment names of the source's runbook."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from pydantic import TypeAdapter

from nullarm.cli.options import Launch, directory_option, json_option, launch_options
from nullarm.cli.plan import plan
from nullarm.cli.preflight import preflight
from nullarm.cli.run import run as run_study
from nullarm.errors import UsageError
from nullarm.protocols.kv_communication.parameters import Order
from nullarm.study.spec import Name

if TYPE_CHECKING:
    from nullarm.protocols.kv_communication.runbook.options import RunbookOptions

STUDY = "kv_communication_qwen"


MILESTONES = {
    0: "baselines and controls: nothing, text, or a whole cache without quantisation is sent",
    1: "statistics: what each codec of the run does to each stream",
    2: "quantised, all tokens",
    3: "part of the tokens, by place or by chance: the grid",
    4: "budget curves, which are always drawn",
    5: "what follows: other fusers, bits by stream, tokens by score",
}


class _Words(click.ParamType[tuple[Any, ...]]):
    """Words between commas or blanks, each read by `kind`, which raises ValueError for what is not `valid`."""

    name = "list"

    def __init__(self, kind: Callable[[str], Any], valid: str) -> None:
        self.kind, self.valid = kind, valid

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        return tuple(self._read(word, param, ctx) for word in re.split(r"[,\s]+", value) if word)

    def _read(self, word: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind(word)
        except ValueError:
            self.fail(f"got {word!r}; valid: {self.valid}", param, ctx)


def _share(word: str) -> float:
    if not 0 < float(word) <= 1:
        raise ValueError(word)
    return float(word)


def _order(word: str) -> str:
    if word not in get_args(Order):
        raise ValueError(word)
    return word


class _PlainName(click.ParamType[str]):
    """What may name a directory."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(TypeAdapter(Name).validate_python(value))  # its error is a ValueError
        except ValueError:
            self.fail(f"got {value!r}; valid: a letter, then letters, digits, '_', '.', '-'", param, ctx)


def _milestone_option(number: int) -> Any:
    return click.option(
        f"--run-milestone-{number}/--no-run-milestone-{number}", f"milestone_{number}", default=None,
        envvar=f"RUN_MILESTONE_{number}", show_envvar=True, help=f"Milestone {number}: {MILESTONES[number]}.",
    )  # fmt: skip


def _asked(name: str, meaning: str, kind: Any = str, *, env: str | None = None, **more: Any) -> Any:
    return click.option(name, type=kind, envvar=env, show_envvar=env is not None, help=meaning, **more)


_RUNBOOK = (
    *map(_milestone_option, MILESTONES),
    _asked("--chunk-size", "Items between two commits.", click.IntRange(1), env="CHUNK_SIZE"),
    click.option("--eval-smoke", is_flag=True, envvar="EVAL_SMOKE", show_envvar=True,
                 help="A rehearsal on few items; it never enters a verdict."),
    _asked("--smoke-limit", "Items of each data set in a rehearsal.", click.IntRange(1), env="SMOKE_LIMIT", default=50,
           show_default=True),
    click.option("--run-tag-prefix", "--run-tag", "run_tag_prefix", type=_PlainName(), envvar="RUN_TAG_PREFIX",
                 show_envvar=True,
                 help="Ends the names of run directories; the study's name when left out."),
    _asked("--m3-kv-quant-scheme", "Codec of the grid.", env="M3_KV_QUANT_SCHEME"),
    _asked("--m3-proportions", "Shares of tokens in the grid, such as 1,0.5.",
           _Words(_share, "numbers above 0, up to 1"), env="M3_PROPORTIONS"),
    _asked("--m3-order-modes", "Orders in the grid, such as front,back.", _Words(_order, ", ".join(get_args(Order))),
           env="M3_ORDER_MODES"),
    _asked("--max-new-tokens", "Most tokens of a generated answer.", click.IntRange(1)),
    _asked("--base-model", "The receiver."),
    _asked("--teacher-model", "The first sharer."),
    _asked("--checkpoint-dir", "Checkpoint of the first fuser: a directory, or hf:REPO/PATH."),
    _asked("--checkpoint-root", "Where relative checkpoints lie, and copies of the hub's, under their folders there.",
           click.Path(exists=True, file_okay=False, path_type=Path), env="C2C_CKPT_ROOT"),
    _asked("--kv-quant-scheme", "One run: its codec; int8 when left out."),
    _asked("--kv-quant-axis", "One run, or the grid: int8 or int4 with one scale per head, or per layer.",
           click.Choice(["head", "layer"])),
    _asked("--kv-quant-eps", "Likewise: least scale.", click.FloatRange(0, min_open=True)),
    _asked("--kv-cache-proportion", "One run: share of the tokens.", click.FloatRange(0, 1, min_open=True)),
    _asked("--kv-cache-order-mode", "One run: which tokens.", click.Choice(get_args(Order))),
    click.option("--disable-kv-quant", is_flag=True, help="One run: the cache in bf16."),
    click.option("--kv-quant-collect-stats", "collect_stats", is_flag=True, help="The same as --run-milestone-1."),
)  # fmt: skip


def _runbook_options(function: Any) -> Any:
    for decorate in reversed(_RUNBOOK):
        function = decorate(function)
    return function


@click.group(invoke_without_command=True)
@click.pass_context
def kv(context: click.Context) -> None:
    """Run communication studies by their runbook's names, and draw budget curves."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@kv.command()
@click.argument("study", default=STUDY)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, dotted; repeatable.")
@click.option("--profile", metavar="NAME", help="Apply a profile of the study file.")
@directory_option
@_runbook_options
@click.option("--dry-run", is_flag=True, envvar="DRY_RUN", show_envvar=True, help="Plan and preflight only.")
@click.option("--prep-only", is_flag=True, help="Lay down the study and the runbook's tree, run nothing.")
@click.option("--preflight/--no-preflight", "check", default=True, envvar="PREFLIGHT", show_envvar=True,
              show_default=True, help="Check this machine first.")  # fmt: skip
@click.option("--skip-done/--no-skip-done", default=True, envvar="SKIP_DONE", show_envvar=True, show_default=True,
              help="Keep finished cells, or begin anew.")  # fmt: skip
@click.option("--force-rerun", is_flag=True, envvar="FORCE_RERUN", show_envvar=True,
              help="Begin anew; the old study directory is moved aside.")  # fmt: skip
@launch_options
@click.option("--require-verdict", is_flag=True, help="Exit with 6 when the primary verdict is inconclusive.")
@json_option
@click.pass_context
def run(
    context: click.Context, /, study: str, overrides: tuple[str, ...], profile: str | None, directory: Path | None,
    dry_run: bool, prep_only: bool, check: bool, skip_done: bool, force_rerun: bool, launch: Launch,
    require_verdict: bool, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Run a communication study, its settings by the names of the source's runbook.

    STUDY is a study file or the name of a shipped study. With one of --kv-quant-scheme, --kv-cache-proportion,
    --kv-cache-order-mode or --disable-kv-quant only that channel is run, beside the baselines; likewise with
    --kv-quant-axis or --kv-quant-eps where neither milestones nor --m3-kv-quant-scheme are asked for.
    """
    from nullarm.conduct import default_directory, lay_down, prepare

    said, entries = _translated(study, overrides, profile, _options(asked))
    given = {"study": study, "overrides": said, "profile": profile}
    root = directory or default_directory(prepare(study, overrides=said, profile=profile).study)
    if dry_run:
        context.invoke(plan, **given, device=None, at_once=launch.at_once, list_cells=True, as_json=as_json)
    if check or dry_run:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            context.invoke(preflight, **given, directory=root, as_json=False)
    if dry_run:
        return
    if force_rerun or not skip_done:
        _move_aside(root)
    if prep_only:
        from nullarm.protocols.kv_communication.runbook.tree import write_tree

        for path in write_tree(lay_down(prepare(study, overrides=said, profile=profile), root)):
            click.echo(f"prepared {path}")
        return
    context.invoke(
        run_study, **given, directory=root, detached=False, require_verdict=require_verdict, as_json=as_json,
        engine=launch.engine, at_once=launch.at_once, device=launch.device, entries=launch.entries or entries,
        skip_existing=launch.skip_existing,
    )  # fmt: skip


@kv.command("budget-curve")
@click.option("--runs-root", "roots", multiple=True, required=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A study directory; repeatable, several are merged.")  # fmt: skip
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to write.")
@click.option("--assume-input-length", type=click.IntRange(1), metavar="N",
              help="Bytes for prompts of N tokens instead of those that were measured.")  # fmt: skip
@click.option("--no-plot", is_flag=True, help="Only the table.")
def budget_curve(roots: tuple[Path, ...], output_dir: Path, assume_input_length: int | None, no_plot: bool) -> None:
    """Write budget_curve.csv, and one picture for each data set, from study directories."""
    from nullarm.protocols.kv_communication.budget.curve import write_curve
    from nullarm.protocols.kv_communication.budget.evaluations import evaluations
    from nullarm.protocols.kv_communication.budget.points import curve_points
    from nullarm.store.study_store import StudyStore

    found = [e for root in roots for e in evaluations(StudyStore.open(root))]
    points = curve_points(found)
    if not points:
        raise UsageError("no finished evaluation of a communication study", value=[str(root) for root in roots])
    for path in write_curve(points, output_dir, assumed_length=assume_input_length, plot=not no_plot):
        click.echo(f"wrote {path}")


def _options(asked: dict[str, Any]) -> RunbookOptions:
    from nullarm.protocols.kv_communication.runbook.options import RunbookOptions

    milestones = {number: asked.pop(f"milestone_{number}") for number in MILESTONES}
    if asked.pop("collect_stats"):
        milestones[1] = True
    if milestones.pop(4) is not None:
        click.echo("milestone 4 is always there: budget curves are drawn from whatever was run", err=True)
    given = {name: value for name, value in asked.items() if value is not None}
    return RunbookOptions(tuple(milestones.items()), **given)


def _translated(
    study: str, overrides: tuple[str, ...], profile: str | None, options: RunbookOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The overrides that the options stand for, those of the command line last; and the arms to run, none for all."""
    from nullarm.protocols.kv_communication.protocol import KvCommunication
    from nullarm.protocols.kv_communication.runbook.overrides import one_run_arms
    from nullarm.protocols.kv_communication.runbook.overrides import overrides as translate
    from nullarm.study.load import load_study
    from nullarm.study.shipped import study_path

    path = study_path(study)
    said = (*translate(options, load_study(path, overrides=overrides, profile=profile)), *overrides)
    if not options.one_run:
        return said, ()
    asked = load_study(path, overrides=said, profile=profile)
    arms, further = one_run_arms(options.channel, asked, KvCommunication().parameters(asked))
    return (*said, *further), tuple(arms)


def _move_aside(root: Path) -> None:
    """Give a study directory another name, so that its place is free.

    Raises:
        UsageError: A cell of it is running.
    """
    from nullarm.store.study_store import StudyStore

    if not root.exists():
        return
    with StudyStore.open(root) as store:
        if running := [entry.label for entry in store.journal.entries() if entry.state == "running"]:
            raise UsageError(f"{root} is being run: {running[0]}", next_command=f"nullarm status {root}")
    number = 1
    while (aside := root.with_name(f"{root.name}.before-{number}")).exists():
        number += 1
    root.rename(aside)
    click.echo(f"moved aside: {aside}", err=True)
