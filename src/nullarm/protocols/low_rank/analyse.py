"""The declared contrasts, less those that may not be read: nothing was changed, or the timing session was disturbed."""

from __future__ import annotations

from collections.abc import Iterator

from nullarm.analysis import Analysis
from nullarm.analysis import analyse as judge
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.sessions import TimingSession, timing_sessions
from nullarm.protocols.low_rank.tables import EVALUATE, TREATMENT
from nullarm.stats.verdict import Verdict
from nullarm.store.study_store import StudyStore
from nullarm.study.spec import Contrast


def analyse(store: StudyStore) -> Analysis:
    """The declared contrasts on windows and on the blocks of timing sessions.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    held = timing_sessions(store)
    extra = {"sessions": {session.name: session.judgement.to_json() for session in held}}
    return judge(store, (EVALUATE,), extra, withheld=dict(_withheld(store, held)))


def _withheld(store: StudyStore, held: list[TimingSession]) -> Iterator[tuple[str, tuple[Verdict, str]]]:
    weights = _weights(store)
    arms = LowRankParameters.model_validate(store.lock.study.parameters).compression
    for contrast in store.lock.study.analysis.contrasts:
        treated, control = weights.get(contrast.treatment), weights.get(contrast.control)
        decoded_alike = arms[contrast.treatment].speculation == arms[contrast.control].speculation
        if treated and treated == control and (decoded_alike or contrast.test != "paired_blocks"):
            yield contrast.name, (Verdict.NO_OP, _same(contrast, treated))
        elif reasons := _disturbed(contrast, held):
            yield contrast.name, (Verdict.INVALID, f"{reasons[0]} {'; '.join(reasons[1:])}".strip())


def _weights(store: StudyStore) -> dict[str, dict[int, set[str]]]:
    """Hashes of the weights that each arm really ran: by arm and seed, of all draws."""
    found: dict[str, dict[int, set[str]]] = {}
    for cell in store.plan:
        if cell.stage == EVALUATE and cell.arm and (finished := store.finished(cell.id)):
            of_arm = found.setdefault(cell.arm, {})
            of_arm.setdefault(cell.seed, set()).add(finished.json(TREATMENT)["weights"])
    return found


def _disturbed(contrast: Contrast, held: list[TimingSession]) -> tuple[str, ...]:
    """Why a session that was held for a contrast can carry no verdict; empty where all of them can."""
    judged = [session.judgement for session in held if session.contrast == contrast]
    return next((one.reasons for one in judged if one.verdict is Verdict.INVALID), ())


def _same(contrast: Contrast, weights: dict[int, set[str]]) -> str:
    hashes = ", ".join(sorted(one[:12] for of_seed in weights.values() for one in of_seed))
    return f"both arms, {contrast.treatment} and {contrast.control}, ran the same weights (SHA-256 {hashes})"
