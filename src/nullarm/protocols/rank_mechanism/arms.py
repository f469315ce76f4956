"""The arms a rank-mechanism study may have, and which cell each one is."""

from __future__ import annotations

from typing import Final

PROBE: Final = "probe"
AUDITED: Final = "audited"
SHUFFLED: Final = "shuffled"
REPLICATE: Final = "replicate"
EVA: Final = "eva"
ADALORA: Final = "adalora"

ARMS = {
    PROBE: "rank r everywhere: the reference",
    AUDITED: "the audit's map: the treatment",
    SHUFFLED: "the audited ranks permuted within modules of equal shape: isolates placement",
    "uniform_median": "one rank, the median of the wanted ones: legacy control",
    "uniform_p90": "one rank, their 90th percentile: legacy control",
    "uniform_matched": "one rank, or two neighbouring ones, nearest in parameters: isolates heterogeneity",
    "type_mean": "each module type at its mean rank: type only",
    "depth_mean": "each depth at its mean rank: depth only",
    "inverse": "the order of ranks reversed within modules of equal shape: wrong-way control",
    REPLICATE: "the audited map again with another initialisation: A/A noise",
    EVA: "PEFT's EVA at the audited map's parameters: what a user would pick instead",
    ADALORA: "PEFT's AdaLoRA, ending at the audited map's parameters: what a user would pick instead",
}
"""Every arm, with what it is for."""

LEGACY_NAMES = {"audited": "per_layer", "shuffled": "per_layer_shuffled"}
"""Names of the source's runbook, used in the files it defines."""


def map_key(arm: str, replicate: int | None) -> str:
    """Name of an arm's rank map: `shuffled_2`, else the arm's own."""
    return f"{arm}_{replicate or 1}" if arm == SHUFFLED else arm
