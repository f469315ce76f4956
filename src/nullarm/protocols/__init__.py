"""The kinds of study: each is planned, run per cell and judged by one `Protocol`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nullarm.errors import StudyError, nearest

if TYPE_CHECKING:
    from nullarm.protocols.base import Protocol

BUILT_IN = {
    "kv_communication": "nullarm.protocols.kv_communication.protocol:KvCommunication",
    "low_rank": "nullarm.protocols.low_rank.protocol:LowRank",
    "rank_mechanism": "nullarm.protocols.rank_mechanism.protocol:RankMechanism",
    "rehearsal": "nullarm.protocols.rehearsal:Rehearsal",
    "residual": "nullarm.protocols.residual.protocol:Residual",
}


def find_protocol(name: str) -> Protocol[Any]:
    """The protocol called `name`: a built-in one, or `package.module:Class` of your own.

    Raises:
        StudyError: There is none.
    """
    from nullarm.protocols.base import Protocol

    module_name, colon, class_name = BUILT_IN.get(name, name).partition(":")
    if not colon:
        raise StudyError(f"no protocol {name!r}{nearest(name, BUILT_IN)}", valid=[*BUILT_IN, "package.module:Class"])
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise StudyError(
            f"cannot import protocol {name!r}: {error}", valid=[*BUILT_IN, "package.module:Class"]
        ) from error
    if not (isinstance(found, type) and issubclass(found, Protocol)):
        raise StudyError(f"{name!r} is not a nullarm Protocol", valid=[*BUILT_IN, "package.module:Class"])
    protocol: Protocol[Any] = found()
    return protocol
