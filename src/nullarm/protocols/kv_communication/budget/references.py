"""What each arm is measured against: the cache as it is, through the same fusers; and the receiver alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nullarm.protocols.kv_communication.budget.evaluations import Evaluation

DTYPES = ("bfloat16", "float32", "float16")
"""Raw numbers, those that a cache is kept in first."""


def unquantised(found: Iterable[Evaluation]) -> Mapping[str, str]:
    """For each arm, the whole own cache without quantisation by the same route, or where there is none the study's own.

    What a codec costs through fuser B is seen beside the cache through fuser B. The study's own comes by its first
    fuser, nothing legacy; the other unquantised ones are measured against it.

    Returns:
        Reference by arm; empty without an unquantised cache.
    """
    arms = {e.arm: e for e in found}
    whole = sorted(filter(_is_whole, arms.values()), key=_preference)
    references: dict[str, str] = {}
    for e in arms.values():
        alike = next((w for w in whole if e.fused and _route(w) == _route(e)), None)
        reference = next((w for w in (alike, *whole[:1]) if w is not None and w is not e), None)
        if reference is not None:
            references[e.arm] = reference.arm
    return references


def receiver_only(found: Iterable[Evaluation]) -> Mapping[str, str]:
    """For each other arm, the receiver alone; empty where it was not evaluated."""
    arms = {e.arm: e.channel["via"] for e in found}
    alone = next((arm for arm, via in arms.items() if via == "receiver"), None)
    return {} if alone is None else {arm: alone for arm in arms if arm != alone}


def _is_whole(e: Evaluation) -> bool:
    c, codec = e.channel, e.cell.settings["codec"]
    own = e.fused and c["sharer_cache"] == "own" and c["proportion"] == 1 and c["allocation"] is None
    return bool(own and codec["kind"] == "raw")


def _route(e: Evaluation) -> tuple[object, ...]:
    """Fusers, and how they are used."""
    fusers = tuple(e.channel["fusers"] or e.cell.settings["fusers"])
    combine = e.channel["combine"] if len(fusers) > 1 else None
    return fusers, combine, e.channel["alignment"], e.channel["fusion"]


def _preference(e: Evaluation) -> tuple[bool, bool, bool, int]:
    """One sharer, nothing legacy, the study's first fuser, and then the numbers that a cache is kept in come first."""
    legacy = e.channel["alignment"] != "offsets" or e.channel["fusion"] != "whole"
    return (
        len(e.cell.settings["fusers"]) > 1,
        legacy,
        bool(e.channel["fusers"]),
        DTYPES.index(e.cell.settings["codec"]["dtype"]),
    )
