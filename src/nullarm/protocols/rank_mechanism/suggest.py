"""Ranks an audit suggests for the next training run: one for all modules, or one for each."""

from __future__ import annotations

from typing import Any, Literal

from nullarm.errors import UsageError, nearest
from nullarm.protocols.rank_mechanism.allocate import audited_map, uniform_map
from nullarm.protocols.rank_mechanism.policy import AllocationPolicy, quantile_arm
from nullarm.protocols.rank_mechanism.ranks import lora_parameters
from nullarm.protocols.rank_mechanism.spectra import Audit

SuggestionMode = Literal["global", "per-layer"]
MODES: tuple[SuggestionMode, ...] = ("global", "per-layer")


def suggestion(
    audit: Audit, mode: SuggestionMode = "per-layer", policy: AllocationPolicy | None = None
) -> dict[str, Any]:
    """What the audit suggests, as plain JSON values.

    Args:
        audit: The audited adapter; no suggested rank exceeds the rank it was trained with.
        mode: `global`: `rank` is that of the greatest quantile in the policy, `ranks` has all of them.
            `per-layer`: `rank_pattern` names every module.
        policy: How a spectrum becomes a rank; `default_policy(audit)` unless given.

    Raises:
        UsageError: If `mode` is unknown.
        StudyError: If the policy allows no rank for some module.
    """
    if mode not in MODES:
        raise UsageError(
            f"unknown mode of suggestion{nearest(mode, MODES)}",
            value=mode,
            valid=MODES,
            next_command="nullarm audit DIR --suggest per-layer",
        )
    policy = default_policy(audit) if policy is None else policy
    common = {"mode": mode, "policy": policy.to_json(), "probe_parameters": lora_parameters(audit.ranks, audit.shapes)}
    return common | (_global(audit, policy) if mode == "global" else _per_layer(audit, policy))


def default_policy(audit: Audit) -> AllocationPolicy:
    """`AllocationPolicy()` with the adapter's own ranks, and powers of two up to the largest, on the ladder."""
    own = set(audit.ranks.values())
    powers = {2**k for k in range(max(own).bit_length())}
    return AllocationPolicy(allowed_ranks=tuple(sorted(own | powers)))


def _global(audit: Audit, policy: AllocationPolicy) -> dict[str, Any]:
    maps = {
        q: uniform_map(audit.spectra, audit.shapes, audit.ranks, policy, q) for q in sorted(policy.uniform_quantiles)
    }
    greatest = max(maps)
    return {
        "rank": max(maps[greatest].values()),
        "ranks": {quantile_arm(q): max(ranks.values()) for q, ranks in maps.items()},
        "parameters": lora_parameters(maps[greatest], audit.shapes),
    }


def _per_layer(audit: Audit, policy: AllocationPolicy) -> dict[str, Any]:
    ranks = audited_map(audit.spectra, audit.shapes, audit.ranks, policy)
    return {"rank_pattern": ranks, "parameters": lora_parameters(ranks, audit.shapes)}
