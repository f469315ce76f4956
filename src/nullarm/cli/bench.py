"""`nullarm bench`: timings of two arms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullarm.cli.options import json_option, print_json

if TYPE_CHECKING:
    from nullarm.bench.judging import SessionJudgement


@click.group(invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Time two arms or models against each other, and judge timings."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_ABOVE_0 = click.FloatRange(0, min_open=True)
_ALPHA = click.FloatRange(0, 0.5, min_open=True, max_open=True)


@bench.command()
@click.argument("treatment")
@click.argument("control")
@click.option("--prompt", help="What is continued; the source's question when left out.")
@click.option("--tokens", type=click.IntRange(2), help="Tokens of a run.")
@click.option("--blocks", type=click.IntRange(5), help="Blocks of treatment against control, two pairs each.")
@click.option("--slowdown", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Share of time that the slowed control takes more.")  # fmt: skip
@click.option("--procedure", type=click.Choice(["abba", "blocked", "fresh_process"]), help="Order of the runs.")
@click.option("--compile", is_flag=True, default=None, help="Run each step as one CUDA graph; on a GPU only.")
@click.option("--margin", type=_ABOVE_0, default=0.005, show_default=True,
              help="Smallest log ratio that matters; 0.005 is half a per cent.")  # fmt: skip
@click.option("--alpha", type=_ALPHA, default=0.05, show_default=True, help="Level of the tests.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="Of both models.")  # fmt: skip
@click.option("--device", help="A torch device; the GPU where there is one.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of blocks.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Write runs.parquet, judgement.json and, where an arm speculates, speculation.json.")  # fmt: skip
@json_option
def run(
    treatment: str, control: str, margin: float, alpha: float, dtype: str, device: str | None, seed: int,
    out: Path | None, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Time TREATMENT against CONTROL in one session.

    Each is a model reference, a directory of a compressed model, or STUDY_DIR:ARM of a low_rank study. What is left
    out of --prompt, --tokens, --blocks, --slowdown, --procedure and --compile is as in a study.
    """
    from nullarm.bench.settings import BenchSettings
    from nullarm.protocols.low_rank.side_by_side import side_by_side
    from nullarm.protocols.low_rank.timed_arm import timed_arm

    settings = BenchSettings.model_validate({name: value for name, value in asked.items() if value is not None})
    arms = {"treatment": timed_arm(treatment), "control": timed_arm(control)}
    judged = side_by_side(
        arms, settings, margin=margin, alpha=alpha, dtype=dtype, device=device, seed=seed, out=out,
        tell=lambda done, total, note: click.echo(f"{done}/{total} blocks · {note}", err=True),
    )  # fmt: skip
    name = f"{treatment} against {control}"
    if as_json:
        print_json({"name": name, **judged.to_json()})
    else:
        _print_session(name, judged)
    _refuse_invalid(name, judged)


@bench.command()
@click.argument("file", metavar="CSV", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--margin", type=click.FloatRange(0), default=0.005, show_default=True,
              help="Smallest difference that matters, as a share of the control's mean.")  # fmt: skip
@click.option("--rule", type=click.Choice(["ours", "source"]), default="ours", show_default=True,
              help="How spread decides on contamination.")  # fmt: skip
@click.option("--control", metavar="TAG", help="The control; baseline, else the first tag, when left out.")
@click.option("--alpha", type=_ALPHA, default=0.05, show_default=True, help="Level of the tests.")
@json_option
def judge(file: Path, margin: float, rule: Any, control: str | None, alpha: float, as_json: bool) -> None:
    """Judge the timings of two arms in a file of the source's form (tag,rep,tps).

    Runs are taken as unpaired. Of a contaminated session the numbers are shown, and the command ends with code 5.
    """
    from nullarm.bench.judging import judge_runs
    from nullarm.bench.source_csv import control_of, read_runs, speeds_by_tag
    from nullarm.bench.spread import assess
    from nullarm.stats.contamination import compare_spread

    speeds = speeds_by_tag(read_runs(file))
    reference = control_of(speeds, control)
    treated = next(tag for tag in speeds if tag != reference)
    name = f"{treated} against {reference}"
    judged = judge_runs(speeds[treated], speeds[reference], margin=margin, alpha=alpha, rule=rule, name=name)
    spread = compare_spread(speeds[treated], speeds[reference])
    facts = {
        "name": name,
        **judged.to_json(),
        "rule": rule,
        "sessions": {other: assess(spread, other).state.value for other in ("ours", "source")},
        "arms": {tag: {"n": len(values), "mean": sum(values) / len(values)} for tag, values in speeds.items()},
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts, judged)
    _refuse_invalid(str(file), judged)


def _refuse_invalid(name: str, judged: SessionJudgement) -> None:
    from nullarm.errors import InvalidResult

    if judged.verdict == "INVALID":
        raise InvalidResult(
            f"{name}: no verdict, the session is {judged.session}",
            next_command="close what else is running, and time the arms again",
        )


def _print_session(name: str, judged: SessionJudgement) -> None:
    click.echo(f"{name}: {judged.verdict} · session {judged.session}")
    click.echo(f"  difference        {_difference(judged)}")
    for label, found in (("A/A", judged.again), ("injected slowdown", judged.slowed)):
        if found is not None and found.estimate is not None:
            click.echo(f"  {label:<17} {found.estimate:+.2%}: {found.judgement.verdict}")
    for reason in judged.reasons:
        click.echo(f"  · {reason}")


def _print(facts: dict[str, Any], judged: SessionJudgement) -> None:
    arms = ", ".join(f"{tag} {arm['mean']:.4g} tok/s over {arm['n']} runs" for tag, arm in facts["arms"].items())
    sessions = ", ".join(f"{state} by {rule}" for rule, state in facts["sessions"].items())
    click.echo(f"{facts['name']}: {judged.verdict} · session {judged.session}")
    click.echo(f"  speeds      {arms}")
    click.echo(f"  difference  {_difference(judged)}, margin ±{facts['margin']:.2%}")
    click.echo(
        f"  p           {_number(facts['p'])} (Welch, two-sided); of equivalence {_number(facts['p_equivalence'])}"
    )
    click.echo(f"  spread      {_spread(facts['spread'])}")
    click.echo(f"  session     {sessions}")
    for reason in judged.reasons:
        click.echo(f"  · {reason}")


def _difference(judged: SessionJudgement) -> str:
    if judged.estimate is None or judged.ci is None:
        return "none"
    ci = judged.ci
    return f"{judged.estimate:+.2%} ({100 * ci.level:g} % interval {ci.low:+.2%} to {ci.high:+.2%})"


def _spread(spread: dict[str, float | None]) -> str:
    variances, deviations = _number(spread["variance_ratio"]), _number(spread["sd_ratio"])
    return (
        f"ratio of variances {variances}, of standard deviations {deviations}; "
        f"Brown–Forsythe p {_number(spread['p_spread'])}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
