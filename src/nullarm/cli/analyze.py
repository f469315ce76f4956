"""`nullarm analyze`: judge what a study directory holds."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.options import directory_argument, json_option, print_json


@click.command()
@directory_argument
@click.option("--require-verdict", is_flag=True, help="Exit with 6 when the primary verdict is inconclusive.")
@json_option
def analyze(directory: Path, require_verdict: bool, as_json: bool) -> None:
    """Judge the declared contrasts on what a study directory holds.

    A directory of the source runbook (`seed_*/bench.json`) is judged as well.
    """
    from nullarm.cli.execute import raise_for
    from nullarm.conduct import conclude
    from nullarm.protocols.rank_mechanism.bench import is_bench_directory, judge_bench
    from nullarm.store.study_store import StudyStore

    if is_bench_directory(directory):
        judgement = judge_bench(directory)
        if as_json:
            print_json(judgement.to_json())
        else:
            click.echo(f"{judgement.name}: {judgement.verdict}\n{judgement.reason}")
        return
    store = StudyStore.open(directory)
    conclusion = conclude(store)
    if as_json:
        print_json(conclusion.analysis.to_json())
    else:
        click.echo(conclusion.closing)
    raise_for(store, None, conclusion, require_verdict=require_verdict)
