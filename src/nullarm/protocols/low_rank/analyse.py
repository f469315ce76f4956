"""The declared contrasts, less those that may not be read: nothing was changed, or the timing session was disturbed."""

from __future__ import annotations

from collections.abc import Iterator

from nullarm.analysis import Analysis
from nullarm.analysis import analyse as judge
from nullarm.bench.judging import SessionJudgement, judge_session
from nullarm.bench.runs import runs_of
from nullarm.bench.settings import BenchSettings
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.planning import timed
from nullarm.protocols.low_rank.tables import EVALUATE, MEASURE, RUNS, TREATMENT
from nullarm.stats.verdict import Verdict
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Contrast


def analyse(store: StudyStore) -> Analysis:
    """The declared contrasts on windows and on the blocks of timing sessions.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    judged = dict(sessions(store))
    extra = {"sessions": {name: session.to_json() for name, session in judged.items()}}
    return judge(store, (EVALUATE,), extra, withheld=dict(_withheld(store, judged)))


def sessions(store: StudyStore) -> Iterator[tuple[str, SessionJudgement]]:
    """The timing sessions that are there, each under the name of its contrast, those of other seeds with a number."""
    for contrast in timed(store.lock.study):
        cells = [cell for cell in store.plan if cell.stage == MEASURE and cell.slice == contrast.name]
        for cell in cells:
            if finished := store.finished(cell.id):
                name = contrast.name if len(cells) == 1 else f"{contrast.name}, seed {cell.seed}"
                yield name, session_of(store, contrast, cell, finished)


def session_of(store: StudyStore, contrast: Contrast, cell: Cell, finished: FinishedCell) -> SessionJudgement:
    """A session by itself: its verdict, its A/A, its positive control, and whether it was disturbed."""
    declared = store.lock.study.analysis
    return judge_session(
        runs_of(finished.table(RUNS)), alpha=declared.alpha, seed=declared.seed,
        margin=declared.margin if contrast.margin is None else contrast.margin,
        settings=BenchSettings.model_validate(cell.parameters["bench"]),
    )  # fmt: skip


def _withheld(store: StudyStore, judged: dict[str, SessionJudgement]) -> Iterator[tuple[str, tuple[Verdict, str]]]:
    weights = _weights(store)
    arms = LowRankParameters.model_validate(store.lock.study.parameters).compression
    for contrast in store.lock.study.analysis.contrasts:
        treated, control = weights.get(contrast.treatment), weights.get(contrast.control)
        decoded_alike = arms[contrast.treatment].speculation == arms[contrast.control].speculation
        if treated and treated == control and (decoded_alike or contrast.test != "paired_blocks"):
            yield contrast.name, (Verdict.NO_OP, _same(contrast, treated))
        elif bad := [s for s in _of_contrast(contrast, judged) if s.verdict is Verdict.INVALID]:
            yield contrast.name, (Verdict.INVALID, " ".join(bad[0].reasons))


def _weights(store: StudyStore) -> dict[str, dict[int, set[str]]]:
    """Hashes of the weights that each arm really ran: by arm and seed, of all draws."""
    found: dict[str, dict[int, set[str]]] = {}
    for cell in store.plan:
        if cell.stage == EVALUATE and cell.arm and (finished := store.finished(cell.id)):
            of_arm = found.setdefault(cell.arm, {})
            of_arm.setdefault(cell.seed, set()).add(finished.json(TREATMENT)["weights"])
    return found


def _of_contrast(contrast: Contrast, judged: dict[str, SessionJudgement]) -> list[SessionJudgement]:
    return [session for name, session in judged.items() if name.partition(", seed ")[0] == contrast.name]


def _same(contrast: Contrast, weights: dict[int, set[str]]) -> str:
    hashes = ", ".join(sorted(one[:12] for of_seed in weights.values() for one in of_seed))
    return f"both arms, {contrast.treatment} and {contrast.control}, ran the same weights (SHA-256 {hashes})"
