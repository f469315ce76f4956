"""What `run`, `resume` and `demo` share: run the open cells, conclude, print, and choose the exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nullarm.cli.options import Launch, print_json
from nullarm.cli.progress import ProgressView
from nullarm.errors import CellsFailed, Inconclusive, Interrupted, InvalidResult, Undertrained, UsageError

if TYPE_CHECKING:
    from nullarm.conduct import Conclusion
    from nullarm.engines.base import Engine
    from nullarm.runner import RunResult
    from nullarm.store.paths import StudyPaths
    from nullarm.store.study_store import StudyStore


def execute(store: StudyStore, launch: Launch, *, require_verdict: bool, as_json: bool) -> None:
    """Run, conclude, print.

    Raises:
        CellsFailed: Some cells failed.
        Undertrained: The gate of a probe failed.
        InvalidResult: The primary verdict is INVALID.
        Inconclusive: There is no verdict and one was required.
        Preempted: SIGTERM or SIGUSR1 arrived; running cells were stopped at a safe point.
        Interrupted: Ctrl-C, likewise; a second one kills them.
    """
    from nullarm.conduct import cells_of, conclude

    cells_of(store, launch.entries)
    use_device(launch.device)
    for cell_id, problem in (store.verify() if launch.skip_existing else {}).items():
        click.echo(f"not skipped: {cell_id}: {problem}", err=True)
    result = None
    if any(store.finished(cell.id) is None for cell in store.plan):
        result = _run_open_cells(store, launch)
    else:
        click.echo("everything is done: no cell is open", err=True)
    conclusion = conclude(store)
    if as_json:
        print_json(
            {"directory": str(store.paths.root), "report": str(conclusion.report), **conclusion.analysis.to_json()}
        )
    else:
        click.echo(conclusion.closing)
        click.echo(f"\nreport: {conclusion.report}")
    raise_for(store, result, conclusion, require_verdict=require_verdict, partial=bool(launch.entries))


def _run_open_cells(store: StudyStore, launch: Launch) -> RunResult:
    from nullarm.conduct import run
    from nullarm.training.signals import stop_on_signals

    try:
        with ProgressView() as view, stop_on_signals() as stop:
            engine = make_engine(store, launch, stop)
            return run(store, engine, view.show, stop, launch.entries)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted; what was committed is kept", next_command=f"nullarm resume {store.paths.root}"
        ) from error


def use_device(name: str | None) -> None:
    """Let this process and its workers see only the named device.

    Raises:
        UsageError: It is not the name of one, or of none that is here.
    """
    from nullarm.sites.provenance import gpus

    if name is None:
        return
    found = re.fullmatch(r"cpu|cuda(?::(\d+(?:,\d+)*))?", name)
    if not found:
        raise UsageError("--device names no device", value=name, valid="cpu, cuda, cuda:0, cuda:0,1")
    if name != "cpu" and any(int(index) >= len(gpus()) for index in (found[1] or "0").split(",")):
        here = ["cpu", *(f"cuda:{index}" for index in range(len(gpus())))]
        raise UsageError("there is no such GPU on this machine", value=name, valid=here)
    if name == "cpu" or found[1]:
        os.environ["CUDA_VISIBLE_DEVICES"] = found[1] or ""


def raise_for(
    store: StudyStore,
    result: RunResult | None,
    conclusion: Conclusion,
    *,
    require_verdict: bool,
    partial: bool = False,
) -> None:
    """Raise what the exit code has to say; where only some arms were asked for, cells that are left are no fault."""
    root = store.paths.root
    if result and result.failed:
        cell_id, reason = next(iter(result.failed.items()))
        raise CellsFailed(
            f"{len(result.failed)} cell(s) failed, the first: {cell_id}: {reason}",
            next_command=f"`nullarm logs {root} {cell_id}`; `nullarm resume {root}`, or correct the study and run it",
        )
    for cell in store.plan:
        finished = store.finished(cell.id)
        if finished and finished.record.outcome == "undertrained":
            raise Undertrained(
                f"{cell.label}: {finished.record.reason}", next_command="train longer, or lower the gate, and run again"
            )
    left = sum(store.finished(cell.id) is None for cell in store.plan)
    if partial and left:
        click.echo(f"{left} cells are left for a later run: nullarm resume {root}", err=True)
        return
    if store.lock.study.smoke:
        return  # a rehearsal has no verdict to fail
    primary = conclusion.analysis.primary.judgement
    if primary.verdict == "INVALID":
        raise InvalidResult(f"the primary contrast {primary.name!r} has no valid answer: {primary.reason}")
    if require_verdict and primary.verdict in ("INCONCLUSIVE", "INSUFFICIENT_DATA"):
        raise Inconclusive(f"the primary contrast {primary.name!r} is {primary.verdict}: {primary.reason}")


def make_engine(store: StudyStore, launch: Launch, should_stop: Callable[[], bool]) -> Engine:
    """The engine that was asked for, sized for the study's cells."""
    from nullarm.engines.fake import FakeEngine, Faults
    from nullarm.engines.inline import InlineEngine
    from nullarm.engines.local import LocalEngine

    resources = store.lock.study.resources
    if launch.engine == "inline":
        return InlineEngine(should_stop)
    if launch.engine == "fake":
        return FakeEngine(Faults(seed=0, kill=0.2, lie=0.1, vanish=0.1, repeat=0.1), launch.at_once or 2)
    return LocalEngine(resources.cpus, 0 if launch.device == "cpu" else resources.gpus, launch.at_once)


def detach(paths: StudyPaths, launch: Launch, *, require_verdict: bool) -> None:
    """Start `nullarm resume` in a session of its own, which the end of this terminal does not reach."""
    command = [sys.executable, "-m", "nullarm", "resume", str(paths.root.absolute()), *launch.words]
    command += ["--require-verdict"] if require_verdict else []
    with open(paths.coordinator_log, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    click.echo(f"running in the background as process {process.pid}")
    click.echo(f"watch: nullarm status {paths.root}    output: {paths.coordinator_log}    stop: kill {process.pid}")
