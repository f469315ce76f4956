"""What the plan says of a compression study: the bytes each arm keeps, downloads."""

from __future__ import annotations

from collections import defaultdict

from nullarm.errors import ModelError
from nullarm.models.texts.factory import make_text
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.sizes import Sizes
from nullarm.protocols.model_access import download_bytes


def notes(parameters: LowRankParameters) -> tuple[str, ...]:
    """Bytes of every compressed arm, ranks that save nothing, and what has to be downloaded."""
    need, _ = download_bytes([parameters.model])
    downloads = [f"downloads about {need / (1 << 30):.0f} GiB to HF_HOME"] if need else []
    try:
        return (*downloads, *_text(parameters), *_sizes(parameters))
    except ModelError as error:
        return (*downloads, f"no bytes beforehand: {error.problem}")


def _text(parameters: LowRankParameters) -> list[str]:
    text = make_text(parameters.text)
    if text.downloads or (found := len(text.documents("test"))) > 1:
        return []
    return [f"the test split has {found} document: perplexities have no interval, and contrasts over items one cluster"]


def _sizes(parameters: LowRankParameters) -> list[str]:
    """A line for all arms that keep the same bytes of the same matrices."""
    sizes, told = Sizes(parameters), defaultdict[str, list[str]](list)
    for name, arm in parameters.compression.items():
        if arm.treated:
            kept, dense = sizes.bytes(name), sizes.dense_bytes(name)
            line = f"{kept:,} of {dense:,} bytes in {', '.join(arm.slots)}{_beyond(sizes, name)}"
            told[line].append(name)
    return [f"{', '.join(names)}: {line}" for line, names in told.items()]


def _beyond(sizes: Sizes, name: str) -> str:
    """Where the ranks of an arm save nothing, as far as they are known."""
    found, ranks = sizes.groups(sizes.parameters.compression[name]), sizes.ranks(name)
    over = [group for group, rank in zip(found, ranks or [], strict=False) if rank > group.break_even]
    slots = ", ".join(dict.fromkeys("+".join(group.slots) for group in over))
    return f"; above break-even in {len(over)} of {len(found)} groups: {slots}" if over else ""
