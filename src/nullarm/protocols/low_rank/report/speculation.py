"""How much of a draft is kept, and what speed comes of it: predicted beside measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nullarm.protocols.low_rank.results import SpeculationResult
from nullarm.protocols.low_rank.tables import ACCEPTANCE
from nullarm.report import Axis, Block, Note, Plot, PlotPanel, Series, Table, Value
from nullarm.report.numbers import show
from nullarm.store.study_store import StudyStore


def speculation(store: StudyStore, found: Sequence[SpeculationResult]) -> Iterator[Block]:
    """Nothing where no arm speculates."""
    if not found:
        return
    yield from _unequal(found)
    yield _numbers(found)
    yield _by_position(store, found)


def _unequal(found: Sequence[SpeculationResult]) -> Iterator[Note]:
    for one in found:
        equal, prompts = one.metrics["prompts_equal_to_greedy"], one.metrics["prompts"]
        if equal is not None and equal != prompts:
            yield Note(
                f"{one.arm}: only {equal} of {prompts} texts are those that the verifier writes alone, greedily. Where "
                "two tokens are all but equally likely, rounding can decide otherwise for several positions at once.",
                "warning",
            )


def _numbers(found: Sequence[SpeculationResult]) -> Table:
    """A column for each arm."""
    columns = [_column(one) for one in found]
    return Table(
        title="Speculation",
        columns=("", *(one.arm for one in found)),
        rows=tuple((name, *(column[name] for column in columns)) for name in columns[0]),
        cells=tuple(tuple(id_ for one in found for id_ in _cells(one)) for _ in columns[0]),
        caption="α: how likely a drafted token stays, given that those before it did; acceptance also counts tokens "
        "behind a refused one. Cost ratio c: seconds per drafted token over seconds per verification; "
        "of the timed runs, over seconds per token of the control. Predicted: (1 − α^(γ+1)) / ((1 − α)(γ c + 1)), at "
        "the α and c of the evaluation prompts, or of the very runs that were timed. "
        "Tokens that the verifier made are never counted as accepted.",
    )


def _column(one: SpeculationResult) -> dict[str, Value]:
    said, m, timed = one.cell.parameters["speculation"], one.metrics, one.timed or {}
    ends = one.speed.ratio_interval if one.speed else None
    equal = m["prompts_equal_to_greedy"]
    return {
        "drafter": said["drafter"],
        "tokens of a draft, γ": said["tokens"],
        "temperature": said["temperature"],
        "texts equal to greedy": "not compared" if equal is None else f"{equal} of {m['prompts']}",
        "acceptance": m["acceptance"],
        "α": m["alpha"],
        "tokens a round": m["tokens_per_round"],
        "tokens drafted and kept": m["drafted_tokens"],
        "tokens by the verifier": m["verifier_tokens"],
        "cost ratio c": m["cost_ratio"],
        "predicted speed-up": m["predicted_speed_up"],
        "α, timed runs": timed.get("alpha"),
        "cost ratio c, timed runs": timed.get("cost_ratio"),
        "predicted speed-up, timed runs": timed.get("predicted_speed_up"),
        "measured speed-up": one.speed.ratio if one.speed else None,
        "measured, interval": f"{show(ends.low)} to {show(ends.high)}" if ends else None,
        "measured against": one.speed.contrast.control if one.speed else None,
        "session": one.speed.judgement.session.value if one.speed else None,
    }


def _by_position(store: StudyStore, found: Sequence[SpeculationResult]) -> Plot:
    panels = tuple(PlotPanel(one.arm, tuple(_lines(store, one))) for one in found)
    return Plot(
        title="Acceptance by position in the draft",
        x=Axis("position", whole=True),
        y=Axis("share that is kept"),
        panels=panels,
        caption="Of all tokens drafted at a position, and of those before which none had been refused.",
    )


def _lines(store: StudyStore, one: SpeculationResult) -> Iterator[Series]:
    finished = store.finished(one.cell.id)
    assert finished is not None
    counts = _counts(finished.table(ACCEPTANCE).to_pylist())
    for name, whole in {"of all drafted": "proposed", "of those looked at": "judged"}.items():
        yield Series(
            name=name,
            x=list(counts),
            y=[sums["accepted"] / sums[whole] if sums[whole] else None for sums in counts.values()],
            hover=[f"{sums['accepted']} of {sums[whole]}" for sums in counts.values()],
            cells=((one.cell.id,),),
            style="line+points",
        )


def _counts(rows: Sequence[dict[str, int]]) -> dict[int, dict[str, int]]:
    """Sums over prompts, by position."""
    names = ("proposed", "judged", "accepted")
    positions = sorted({row["position"] for row in rows})
    sums = {at: np.sum([[row[n] for n in names] for row in rows if row["position"] == at], axis=0) for at in positions}
    return {at: dict(zip(names, (int(value) for value in total), strict=True)) for at, total in sums.items()}


def _cells(one: SpeculationResult) -> tuple[str, ...]:
    return (one.cell.id, *([one.speed.cell.id] if one.speed else []))
