"""What speculative decoding counted in the very runs that a timing session judges, and the speed-up they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from nullarm.bench.blocks import judged
from nullarm.bench.runs import Arm, Run
from nullarm.protocols.low_rank.speculation.result import Speculation, pooled, predicted_speed_up


def predictions(runs: Sequence[Run], counts: Mapping[int, Speculation], *, plain: bool) -> dict[str, dict[str, Any]]:
    """By arm that speculates, the pooled counts of its runs of the contrast that may be believed.

    Args:
        runs: Of the session.
        counts: By number of the run.
        plain: Whether the control is the model as it is loaded, decoded as usual. Its seconds per token are then what a
            drafted token's are compared with.

    Returns:
        See `tables.SPECULATION`.
    """
    believed = [run for run in judged(runs) if run.phase == "contrast"]
    alone = [run for run in believed if run.arm == "control" and plain]
    step_s = sum(run.decode_s for run in alone) / sum(run.tokens for run in alone) if alone else None
    by_arm = {arm: [counts[r.run] for r in believed if r.arm == arm and r.run in counts] for arm in get_args(Arm)}
    return {arm: {"runs": len(mine), **_told(pooled(mine), step_s)} for arm, mine in by_arm.items() if mine}


def _told(found: Speculation, step_s: float | None) -> dict[str, Any]:
    drafted, alpha = sum(found.proposed), found.alpha
    cost_ratio = found.draft_s / drafted / step_s if drafted and step_s else None
    predicted = None
    if alpha is not None and cost_ratio is not None:
        predicted = predicted_speed_up(alpha, found.draft_length, cost_ratio)
    return {
        "draft_length": found.draft_length,
        "rounds": len(found.rounds),
        "proposed": list(found.proposed),
        "judged": list(found.judged),
        "accepted": list(found.accepted),
        "alpha": alpha,
        "tokens_per_round": found.tokens_per_round,
        "cost_ratio": cost_ratio,
        "predicted_speed_up": predicted,
    }
