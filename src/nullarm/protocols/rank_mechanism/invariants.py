"""What must hold between the arms of one seed for their difference to mean placement, checked on what was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nullarm.protocols.rank_mechanism.arms import AUDITED, SHUFFLED
from nullarm.protocols.rank_mechanism.seed_results import Run, SeedResults


def protocol_invariants(results: SeedResults) -> dict[str, bool | str | None]:
    """Each invariant as true or false; None while the runs that would show it are not finished."""
    runs = [run for runs in results.runs.values() for run in runs]
    audited, shuffled = (results.runs.get(arm, ()) for arm in (AUDITED, SHUFFLED))
    compared = [*audited, *shuffled]
    maps = [run.ranks for run in compared]
    return {
        "gate_split": "dev",
        "verdict_split": "test",
        "every_module_has_a_rank": _same([set(r) for r in _known(run.ranks for run in runs)]),
        "trained_as_planned": _planned(runs),
        "shuffled_params_equal_per_layer": _same_of_all([run.metric("lora_parameters") for run in compared]),
        "shuffled_ranks_are_a_permutation": _same_of_all([Counter(m.values()) if m else None for m in maps]),
        "shuffles_are_distinct": _distinct(maps),
        "same_test_items": _same([run.items["item"].to_pylist() for run in runs if run.items is not None]),
    }


def _known(values: Iterable[Mapping[str, int] | None]) -> list[Mapping[str, int]]:
    return [value for value in values if value is not None]


def _same(values: Sequence[object]) -> bool | None:
    return all(value == values[0] for value in values) if len(values) > 1 else None


def _same_of_all(values: Sequence[object]) -> bool | None:
    return None if None in values else _same(values)


def _distinct(maps: Sequence[Mapping[str, int] | None]) -> bool | None:
    if len(maps) < 2 or None in maps:
        return None
    return len({tuple(sorted(m.items())) for m in maps if m}) == len(maps)


def _planned(runs: Sequence[Run]) -> bool | None:
    pairs = [(run.ranks, run.planned) for run in runs if run.ranks is not None and run.planned is not None]
    return all(trained == planned for trained, planned in pairs) if pairs else None
