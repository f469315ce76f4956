"""From a study file to a verdict, in four steps a notebook can take one by one: prepare, lay_down, run, conclude."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullarm.analysis import Analysis, write_analysis
from nullarm.engines.base import Engine
from nullarm.errors import StudyError, UsageError, nearest
from nullarm.protocols import find_protocol
from nullarm.protocols.base import Design, Protocol
from nullarm.protocols.runbooks import translation_of
from nullarm.report import write_html, write_markdown
from nullarm.runner import Runner, RunResult, RunState
from nullarm.store.study_store import StudyStore
from nullarm.store.tables import export_tables
from nullarm.study.load import load_study
from nullarm.study.plan import Plan
from nullarm.study.shipped import study_path
from nullarm.study.spec import Study


@dataclass(frozen=True)
class Prepared:
    """A study that was read, planned and found able to answer its question."""

    study: Study
    protocol: Protocol[Any]
    plan: Plan
    design: Design
    not_carried: Mapping[str, str] = field(default_factory=dict)
    """Why, by key, for what a runbook's own file says and its study does not carry."""


@dataclass(frozen=True)
class Conclusion:
    """What a study directory allows to be said."""

    analysis: Analysis
    closing: str
    """The block to print at the end."""
    report: Path


def prepare(study: str | Study, *, overrides: Sequence[str] = (), profile: str | None = None) -> Prepared:
    """Read a study file and plan it.

    Args:
        study: A path of a study file or of a runbook's own file, the name of a shipped study, or a study.
        overrides: `dotted.key=value` settings.
        profile: Name of a profile of the file.

    Raises:
        StudyError: The file is wrong.
    """
    not_carried: Mapping[str, str] = {}
    if isinstance(study, str):
        path, data = study_path(study), None
        if translation := translation_of(path):
            data, not_carried = translation.study, translation.not_carried
        study = load_study(path, data=data, overrides=overrides, profile=profile, check=_check_parameters)
    protocol = find_protocol(study.protocol)
    plan = protocol.plan(study)
    _refuse_untimed(study, plan)
    return Prepared(study, protocol, plan, protocol.design(study, plan), not_carried)


def _refuse_untimed(study: Study, plan: Plan) -> None:
    """Refuse a contrast over blocks in a study whose protocol holds no timing session for it."""
    held = {cell.slice for cell in plan if cell.exclusive}
    for contrast in study.analysis.contrasts:
        if contrast.test == "paired_blocks" and contrast.name not in held:
            raise StudyError(
                f"contrast {contrast.name!r} is over blocks, and protocol {study.protocol} holds no timing sessions",
                value=contrast.test, valid="paired_t, paired_items, within_seed_randomisation",
                next_command="change its `test`",
            )  # fmt: skip


def refuse_design(prepared: Prepared) -> None:
    """Refuse a study that could not answer its question; a rehearsal need not.

    Raises:
        StudyError: The design cannot reach its α.
    """
    if prepared.design.refusals and not prepared.study.smoke:
        raise StudyError(
            f"study {prepared.study.name} cannot answer its question: {prepared.design.refusals[0]}",
            next_command="add seeds or replicates and look again with `nullarm plan`",
        )


def _check_parameters(study: Study, source: str, places: Mapping[str, str]) -> None:
    find_protocol(study.protocol).parameters(study, source, places)


def default_directory(study: Study) -> Path:
    """Where a study's directory is when nobody says otherwise."""
    return Path("runs") / (f"{study.name}-smoke" if study.smoke else study.name)


def lay_down(prepared: Prepared, root: Path) -> StudyStore:
    """Make the study directory, or go on with it.

    Raises:
        StudyError: The design cannot reach its α: running it would be waste.
        ForeignStudyError: The directory holds another study.
    """
    refuse_design(prepared)
    return StudyStore.create(root, prepared.study, prepared.plan)


def run(
    store: StudyStore,
    engine: Engine,
    observer: Callable[[RunState], None] = lambda state: None,
    should_stop: Callable[[], bool] = lambda: False,
    entries: Sequence[str] = (),
) -> RunResult:
    """Run every open cell, or those of the arms `entries` and what they need; see `Runner.run` for what it raises.

    What the protocol writes of a single cell is written as soon as it ends.

    Raises:
        UsageError: An entry is not an arm of the study.
    """
    protocol = find_protocol(store.lock.study.protocol)
    only = cells_of(store, entries) if entries else None
    try:
        return Runner(store, engine, observer, should_stop, only, lambda cell: protocol.harvest(store, cell)).run()
    finally:
        engine.close()


def cells_of(store: StudyStore, entries: Sequence[str]) -> set[str]:
    """Ids of the cells of these arms, and of what they need.

    Raises:
        UsageError: An entry is not an arm of the study.
    """
    arms = store.lock.study.arms
    for entry in entries:
        if entry not in arms:
            raise UsageError(f"the study has no arm {entry!r}{nearest(entry, arms)}", valid=sorted(arms))
    return store.plan.closure(cell.id for cell in store.plan if cell.arm in entries)


def conclude(store: StudyStore) -> Conclusion:
    """Tables, verdicts, the runbook's files and the report, from what the store holds now."""
    protocol = find_protocol(store.lock.study.protocol)
    export_tables(store)
    analysis = protocol.analyse(store)
    write_analysis(store, analysis)
    closing = protocol.write_outputs(store, analysis)
    document = protocol.document(store, analysis)
    write_html(document, store.paths.report_html)
    write_markdown(document, store.paths.report_markdown)
    return Conclusion(analysis, closing, store.paths.report_html)
