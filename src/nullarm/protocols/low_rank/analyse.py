"""The declared contrasts, less those that may not be read: nothing was changed, or the timing session was disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nullarm.analysis import Analysis, Finding, withheld
from nullarm.analysis import analyse as judge
from nullarm.bench.runs import State
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.sessions import TimingSession, timing_sessions
from nullarm.protocols.low_rank.tables import EVALUATE, TREATMENT
from nullarm.stats.verdict import Judgement, Verdict
from nullarm.store.study_store import StudyStore
from nullarm.study.spec import Contrast


def analyse(store: StudyStore) -> Analysis:
    """The declared contrasts on windows and on the blocks of timing sessions.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    held = timing_sessions(store)
    extra = {"sessions": {session.name: session.judgement.to_json() for session in held}}
    blind = {
        s.contrast.name: f"session {s.name} has not shown that it would have found a difference"
        for s in held
        if s.judgement.blind
    }
    analysis = judge(store, (EVALUATE,), extra, dict(_given(store, held)), blind)
    return replace(analysis, findings=tuple(_suspected(finding, held) for finding in analysis.findings))


def _suspected(finding: Finding, held: list[TimingSession]) -> Finding:
    """The finding, with a word on a session that is not quite to be believed."""
    if not any(s.contrast == finding.contrast and s.judgement.session is State.SUSPECT for s in held):
        return finding
    reason = f"{finding.judgement.reason} The session is SUSPECT."
    return replace(finding, judgement=replace(finding.judgement, reason=reason))


def _given(store: StudyStore, held: list[TimingSession]) -> Iterator[tuple[str, Judgement]]:
    weights, study = _weights(store), store.lock.study
    parameters = LowRankParameters.model_validate(study.parameters)
    arms = parameters.compression
    for contrast in study.analysis.contrasts:
        treated, control = weights.get(contrast.treatment), weights.get(contrast.control)
        decoded_alike = arms[contrast.treatment].speculation == arms[contrast.control].speculation
        mine = [session.judgement for session in held if session.contrast == contrast]
        if treated and treated == control and (decoded_alike or contrast.test != "paired_blocks"):
            yield contrast.name, withheld(study, contrast, Verdict.NO_OP, _same(contrast, treated))
        elif disturbed := [one.reasons for one in mine if one.session is State.CONTAMINATED]:
            why = f"{disturbed[0][0]} {'; '.join(disturbed[0][1:])}".strip()
            yield contrast.name, withheld(study, contrast, Verdict.INVALID, why)
        elif mine and parameters.bench.procedure == "blocked":
            yield contrast.name, _unpaired(contrast, mine[0].contrast.judgement)


def _unpaired(contrast: Contrast, judgement: Judgement) -> Judgement:
    """Runs that were not held in turn are no blocks: what the session says of them, under the contrast's name."""
    evidence = judgement.evidence and replace(judgement.evidence, name=contrast.name)
    return replace(judgement, name=contrast.name, evidence=evidence)


def _weights(store: StudyStore) -> dict[str, dict[int, set[str]]]:
    """Hashes of the weights that each arm really ran: by arm and seed, of all draws."""
    found: dict[str, dict[int, set[str]]] = {}
    for cell in store.plan:
        if cell.stage == EVALUATE and cell.arm and (finished := store.finished(cell.id)):
            of_arm = found.setdefault(cell.arm, {})
            of_arm.setdefault(cell.seed, set()).add(finished.json(TREATMENT)["weights"])
    return found


def _same(contrast: Contrast, weights: dict[int, set[str]]) -> str:
    hashes = ", ".join(sorted(one[:12] for of_seed in weights.values() for one in of_seed))
    return f"both arms, {contrast.treatment} and {contrast.control}, ran the same weights (SHA-256 {hashes})"
