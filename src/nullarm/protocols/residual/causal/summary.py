"""From the rows of an intervention to means over prompts: a cell's metrics, and the curves of the report.

A mean is over prompts, each prompt's own positions averaged first; its interval is Student's t over prompts, none for
a single one. An effect that is not defined for a prompt leaves the prompt out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from nullarm.protocols.residual.causal.tables import DIRECTIONS, MEAN_DIFFERENCE, RANDOM

HALF = 0.5
LEVEL = 0.95

Metrics = dict[str, float | int | None]


def over_prompts(frame: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """`mean`, `low`, `high`, `prompts` of a column, indexed by `by`; groups without a value are left out."""
    own = frame.groupby([*by, "prompt"])[column].mean().dropna()
    groups = own.astype(np.float64).groupby(level=list(range(len(by))))
    n, mean = groups.count(), groups.mean()
    half = stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1)) * groups.std() / np.sqrt(n)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "prompts": n})


def with_place(patching: pa.Table) -> pd.DataFrame:
    """The rows of `patching` with `from_end`, the position counted from the last one, which is 0."""
    frame: pd.DataFrame = patching.to_pandas()
    return frame.assign(from_end=frame["position"] - frame.groupby("prompt")["position"].transform("max"))


def patching_metrics(table: pa.Table) -> Metrics:
    """Per direction the layer at which half of the effect is at the last position, and the best earlier site.

    `…_half_layer`: the first layer whose residual at the last position has a mean effect of one half or more.
    `…_early_effect`, `…_early_layer`, `…_early_position`: the largest mean effect at an earlier position, counted from
    the end, among those that all prompts with an effect have; the largest of many, so it errs upwards.
    """
    frame, found = with_place(table), _counts(table)
    for name in DIRECTIONS:
        own = frame[frame["direction"] == name]
        found[f"{name}_half_layer"] = _first_half(over_prompts(own[own["from_end"] == 0], ["layer"], "effect"))
        early = over_prompts(own[own["from_end"] < 0], ["layer", "from_end"], "effect")
        early = early[early["prompts"] == own.dropna(subset="effect")["prompt"].nunique()]
        place, effect = _largest(early)
        found |= {f"{name}_early_layer": place[0], f"{name}_early_position": place[1], f"{name}_early_effect": effect}
    return found


def layer_swap_metrics(table: pa.Table) -> Metrics:
    """Per direction the window with the largest mean effect, and how prefixes get there.

    `…_window_first`, `…_window_effect`: the window with the largest mean effect; the largest of many, so it errs
    upwards. `…_half_layer`: the first block up to which a prefix has a mean effect of one half. `…_body_effect`: of all
    blocks; what it lacks to 1 is embedding, final norm and head.
    """
    frame, found = table.to_pandas(), _counts(table)
    for name in DIRECTIONS:
        own = frame[frame["direction"] == name]
        place, effect = _largest(over_prompts(own[own["span"] == "window"], ["first", "last"], "effect"))
        prefixes = over_prompts(own[own["span"] == "prefix"], ["last"], "effect")
        found |= {
            f"{name}_window_first": place[0],
            f"{name}_window_effect": effect,
            f"{name}_half_layer": _first_half(prefixes),
            f"{name}_body_effect": None if prefixes.empty else float(prefixes["mean"].iloc[-1]),
        }
    return found


def steering_metrics(table: pa.Table) -> Metrics:
    """Where the mean difference brings the base model closest to the fine-tuned one, and the control at that place.

    `kl_before`: mean KL(fine-tuned ‖ base). `layer`, `strength`, `kl`, `effect`: of the mean difference where its mean
    KL to the fine-tuned model is least; the least of many, so it errs downwards. `random_kl`, `random_effect`: of the
    control there.
    """
    frame = table.to_pandas()
    sites = over_prompts(frame, ["direction", "layer", "strength"], "kl_donor")["mean"]
    layer, strength = sites[MEAN_DIFFERENCE].idxmin()
    here = frame[(frame["layer"] == layer) & (frame["strength"] == strength)]
    effects = over_prompts(here, ["direction"], "effect")["mean"]
    return _counts(table) | {
        "kl_before": float(frame.groupby("prompt")["kl_before"].first().mean()),
        "layer": int(layer),
        "strength": float(strength),
        "kl": float(sites[MEAN_DIFFERENCE][layer, strength]),
        "effect": _number(effects.get(MEAN_DIFFERENCE)),
        "random_kl": float(sites[RANDOM][layer, strength]),
        "random_effect": _number(effects.get(RANDOM)),
    }


def _counts(table: pa.Table) -> Metrics:
    """How many prompts there are, and of how many an effect is defined."""
    frame = table.select(["prompt", "effect"]).to_pandas()
    defined = frame.dropna(subset="effect")
    return {"prompts": int(frame["prompt"].nunique()), "prompts_with_effect": int(defined["prompt"].nunique())}


def _first_half(effects: pd.DataFrame) -> int | None:
    reached = effects.index[effects["mean"] >= HALF]
    return int(reached[0]) if len(reached) else None


def _largest(effects: pd.DataFrame) -> tuple[tuple[int | None, int | None], float | None]:
    """Index and mean of the largest mean, of a frame indexed by two numbers."""
    if effects.empty:
        return (None, None), None
    best = int(effects["mean"].argmax())
    first, second = (int(effects.index.get_level_values(level)[best]) for level in (0, 1))
    return (first, second), float(effects["mean"].iloc[best])


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
