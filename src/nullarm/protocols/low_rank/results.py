"""What each arm came to: bytes, perplexity, speed, and the hash of what it really ran. No torch.

Cells that ended otherwise than `ok`, or not at all, have no result; a smoke run has results, and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from typing import Any

import numpy as np

from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.perplexity.measures import Likelihood, interval
from nullarm.protocols.low_rank.sessions import TimingSession, finished_cells
from nullarm.protocols.low_rank.tables import COMPRESS, COSTS, EVALUATE, ITEMS, SPECULATE, SPECULATION, TREATMENT
from nullarm.stats.verdict import Interval
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell


@dataclass(frozen=True)
class ArmResult:
    """One arm at one seed, or one of its draws.

    Attributes:
        arm: Its name.
        seed: Of the cell.
        replicate: From 1, of an arm that is drawn several times; else None.
        cell: Id of the evaluation.
        cells: That, and the compression it rests on.
        bytes: Of all weights; of an arm that speculates, with its drafter's factors, as for the next two.
        slot_bytes: Of the matrices in the seven slots of all layers.
        kept: Those over the baseline's; None without a baseline.
        token_perplexity: Per token, as for the next two; None past the largest float.
        word_perplexity: Per word.
        byte_perplexity: Per byte.
        perplexity_interval: Of the token perplexity at 1 − 2α, over documents; None with fewer than two of them.
        rise: Of the negative log-likelihood against the baseline, nats a token; None for the baseline itself.
        rise_interval: The same as a paired interval at 1 − 2α, over documents.
        weights: SHA-256 of the effective weights, in hex: equal for arms that are one and the same model.
        logits: SHA-256 of the logits on the first window.
        peak_memory_bytes: Of the GPU while the text was read; None on a CPU.
        speed: The timing session in which the arm is the treatment, the first declared one.
    """

    arm: str
    seed: int
    replicate: int | None
    cell: str
    cells: tuple[str, ...]
    bytes: int
    slot_bytes: int
    kept: float | None
    token_perplexity: float | None
    word_perplexity: float | None
    byte_perplexity: float | None
    perplexity_interval: Interval | None
    rise: float | None
    rise_interval: Interval | None
    weights: str
    logits: str
    peak_memory_bytes: int | None
    speed: TimingSession | None

    @property
    def name(self) -> str:
        """The arm, with the number of the draw where there are several."""
        return self.arm if self.replicate is None else f"{self.arm} {self.replicate}"


@dataclass(frozen=True)
class SpeculationResult:
    """What an arm that speculates came to.

    Attributes:
        arm: Its name.
        cell: The cell: its `parameters["speculation"]` are the settings.
        metrics: Of stage `speculate`: `prompts`, `prompts_equal_to_greedy`, `acceptance`, `alpha`, `tokens_per_round`,
            `drafted_tokens`, `verifier_tokens`, `cost_ratio`, `predicted_speed_up`.
        speed: The timing session in which the arm is the treatment; its `ratio` is the measured speed-up where the
            control is the model as it is loaded.
        timed: What the runs of that session counted, the entry of its arm in `tables.SPECULATION`; None where nothing
            was counted or may be believed.
    """

    arm: str
    cell: Cell
    metrics: Mapping[str, float | int | None]
    speed: TimingSession | None
    timed: Mapping[str, Any] | None


def arm_results(store: StudyStore, held: Sequence[TimingSession]) -> list[ArmResult]:
    """The arms that were evaluated, in plan order.

    Args:
        store: The study directory.
        held: Its `timing_sessions`.

    Raises:
        IntegrityError: An artefact is not what its hash says.
    """
    found = {cell.id: _Evaluation(cell, done) for cell, done in finished_cells(store, EVALUATE)}
    speeds, name, drafters = _speeds(held), baseline_arm(store), _drafters(store)
    baselines = {e.cell.seed: e for e in found.values() if e.cell.arm == name}
    return [
        _result(
            store,
            one,
            baselines.get(one.cell.seed),
            speeds.get((str(one.cell.arm), one.cell.seed)),
            drafters.get((str(one.cell.arm), one.cell.seed), 0),
        )
        for one in found.values()
    ]


def speculations(store: StudyStore, held: Sequence[TimingSession]) -> list[SpeculationResult]:
    """The arms that speculate, in plan order, with the `timing_sessions` that were held."""
    speeds = _speeds(held)
    found = []
    for cell, done in finished_cells(store, SPECULATE):
        speed, metrics = speeds.get((str(cell.arm), cell.seed)), {**done.record.metrics, **done.json(COSTS)}
        found.append(SpeculationResult(str(cell.arm), cell, metrics, speed, _timed(store, speed)))
    return found


def _timed(store: StudyStore, speed: TimingSession | None) -> Mapping[str, Any] | None:
    done = store.finished(speed.cell.id) if speed and speed.believed else None
    if done is None or SPECULATION not in done.record.artefacts:
        return None
    told: dict[str, Any] = done.json(SPECULATION)
    return told.get("treatment")


def baseline_arm(store: StudyStore) -> str | None:
    """The first arm that is the model as it is loaded, decoded as usual; None without one."""
    study = store.lock.study
    compression = LowRankParameters.model_validate(study.parameters).compression
    plain = (name for name in study.arms if not compression[name].treated and compression[name].speculation is None)
    return next(plain, None)


@dataclass(frozen=True)
class _Evaluation:
    cell: Cell
    finished: FinishedCell

    @cached_property
    def rows(self) -> list[Likelihood]:
        """Of its windows."""
        table = self.finished.table(ITEMS).select(list(Likelihood.__dataclass_fields__))
        return [Likelihood(**row) for row in table.to_pylist()]

    @cached_property
    def treatment(self) -> dict[str, Any]:
        found: dict[str, Any] = self.finished.json(TREATMENT)
        return found


def _speeds(held: Sequence[TimingSession]) -> dict[tuple[str, int], TimingSession]:
    """By arm and seed, of the first contrast that times it."""
    found: dict[tuple[str, int], TimingSession] = {}
    for session in held:
        found.setdefault((session.contrast.treatment, session.cell.seed), session)
    return found


def _result(
    store: StudyStore, one: _Evaluation, baseline: _Evaluation | None, speed: TimingSession | None, drafts: int
) -> ArmResult:
    cell, metrics, treatment = one.cell, one.finished.record.metrics, one.treatment
    rise, rise_interval = _rise(store, one, baseline)
    slot_bytes = treatment["slot_bytes"] + drafts
    return ArmResult(
        arm=str(cell.arm), seed=cell.seed, replicate=cell.replicate, cell=cell.id,
        cells=(cell.id, *cell.needs.values()), bytes=treatment["bytes"] + drafts, slot_bytes=slot_bytes,
        kept=slot_bytes / baseline.treatment["slot_bytes"] if baseline else None,
        token_perplexity=metrics["token_perplexity"], word_perplexity=metrics["word_perplexity"],
        byte_perplexity=metrics["byte_perplexity"], perplexity_interval=_interval(store, one.rows),
        rise=rise, rise_interval=rise_interval, weights=treatment["weights"], logits=treatment["logits"],
        peak_memory_bytes=_whole(metrics.get("peak_memory_bytes")), speed=speed,
    )  # fmt: skip


def _drafters(store: StudyStore) -> dict[tuple[str, int], int]:
    """By arm that speculates and seed, bytes of the factors that it holds beside the weights that it verifies with."""
    compression = LowRankParameters.model_validate(store.lock.study.parameters).compression
    drafters = {name: arm.speculation.drafter for name, arm in compression.items() if arm.speculation}
    return {
        (name, cell.seed): int(done.record.metrics["bytes"] or 0)
        for cell, done in finished_cells(store, COMPRESS)
        for name, drafter in drafters.items()
        if cell.arm == drafter
    }


def _rise(store: StudyStore, one: _Evaluation, baseline: _Evaluation | None) -> tuple[float | None, Interval | None]:
    if baseline is None or one is baseline:
        return None, None
    before = {row.item: row.nll for row in baseline.rows}
    if set(before) != {row.item for row in one.rows}:
        return None, None
    rises = [replace(row, nll=row.nll - before[row.item]) for row in one.rows]
    ratio = _interval(store, rises)
    return (
        sum(row.nll for row in rises) / sum(row.tokens for row in rises),
        None if ratio is None else replace(ratio, low=log(ratio.low), high=log(ratio.high)),
    )


def _interval(store: StudyStore, rows: list[Likelihood]) -> Interval | None:
    declared = store.lock.study.analysis
    return interval(rows, np.random.default_rng(declared.seed), 1 - 2 * declared.alpha)


def _whole(value: float | int | None) -> int | None:
    return None if value is None else int(value)
