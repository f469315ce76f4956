"""What the plan says of a compression study: the bytes each arm keeps, downloads."""

from __future__ import annotations

from collections import defaultdict

from nullarm.errors import ModelError
from nullarm.protocols.low_rank.parameters import CompressionArm, LowRankParameters
from nullarm.protocols.low_rank.sizes import Sizes
from nullarm.protocols.model_access import download_bytes


def notes(parameters: LowRankParameters) -> tuple[str, ...]:
    """Bytes of every compressed arm, ranks that save nothing, and what has to be downloaded."""
    need, _ = download_bytes([parameters.model])
    downloads = [f"downloads about {need / (1 << 30):.0f} GiB to HF_HOME"] if need else []
    try:
        return (*downloads, *_sizes(parameters))
    except ModelError as error:
        return (*downloads, f"no bytes beforehand: {error.problem}")


def _sizes(parameters: LowRankParameters) -> list[str]:
    """A line for all arms that keep the same bytes of the same matrices."""
    sizes, told = Sizes(parameters), defaultdict[str, list[str]](list)
    for name, arm in parameters.compression.items():
        if arm.treated:
            kept, dense = sizes.bytes(name), sizes.dense_bytes(name)
            line = f"{kept:,} of {dense:,} bytes in {', '.join(arm.slots)}{_beyond(sizes, arm)}"
            told[line].append(name)
    return [f"{', '.join(names)}: {line}" for line, names in told.items()]


def _beyond(sizes: Sizes, arm: CompressionArm) -> str:
    """Where a rank that is asked for saves nothing."""
    rank, found = arm.budget.rank if arm.budget else None, sizes.groups(arm)
    over = sum(min(rank or 0, group.max_rank) > group.break_even for group in found)
    return f"; rank {rank} is above break-even in {over} of {len(found)} groups" if over else ""
