"""Whether a study's fusers are here, or can be had: looked at before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.fuser.reference import CONFIG, HubFuser, find
from nullarm.protocols.model_access import hub_refusal
from nullarm.sites.preflight import Check

FUSER = "fuser"
"""Name of the check."""


def fuser_access(ref: str) -> Check:
    """Whether a fuser is here, or can be downloaded with the token that is here.

    Args:
        ref: A local directory, or `hf:ORG/REPOSITORY/FOLDER[@REVISION]`.
    """
    try:
        place = find(ref)
    except ModelError as error:
        return Check(FUSER, False, error.problem, error.next_command or f"name a fuser that exists: {error.valid}")
    if isinstance(place, Path):
        return Check(FUSER, True, f"{ref} is at hand")
    return _on_the_hub(place)


def _on_the_hub(place: HubFuser) -> Check:
    from huggingface_hub import is_offline_mode, try_to_load_from_cache

    config = f"{place.folder}/{CONFIG}"
    name = f"{place.repository}/{place.folder}@{place.revision}"
    cached: Any = try_to_load_from_cache(place.repository, config, revision=place.revision)
    if isinstance(cached, str):
        return Check(FUSER, True, f"{name} is in the cache")
    download = f"hf download {place.repository} --revision {place.revision} --include '{place.folder}/*'"
    if is_offline_mode():
        return Check(FUSER, False, f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
                     f"unset HF_HUB_OFFLINE, or on a machine with a network: {download}")  # fmt: skip
    refusal = hub_refusal(place.repository, place.revision, config)
    return Check(FUSER, True, f"{name} can be downloaded") if refusal is None else Check(FUSER, False, *refusal)
