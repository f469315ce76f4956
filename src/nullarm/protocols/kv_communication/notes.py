"""What the plan says of a communication study: bytes on the wire, downloads."""

from __future__ import annotations

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.protocols.kv_communication.parameters import KvCommunicationParameters
from nullarm.protocols.kv_communication.wire.size import message_bytes
from nullarm.protocols.model_access import download_bytes

TOKENS = 256
"""Of the prompt that messages are sized for."""


def notes(parameters: KvCommunicationParameters) -> tuple[str, ...]:
    """Sizes for each sharer whose shape is known here, what has to be downloaded, and what is not known."""
    need, _ = download_bytes([parameters.receiver, *parameters.sharers.values()])
    sharers = {fuser.sharer for fuser in parameters.fusers.values()}
    sizes = [_sizes(name, parameters) for name in parameters.sharers if name in sharers]
    downloads = [f"downloads about {need / (1 << 30):.0f} GiB to HF_HOME"] if need else []
    unknown = [ref for ref in dict.fromkeys([parameters.receiver, *parameters.sharers.values()]) if not _known(ref)]
    silent = [f"no time, memory or bytes beforehand, for want of a configuration: {', '.join(unknown)}"]
    return tuple(line for line in (*sizes, *downloads, *(silent if unknown else ())) if line)


def _known(ref: str) -> bool:
    try:
        Geometry.of_reference(ref)
    except ModelError:
        return False
    return True


def _sizes(name: str, parameters: KvCommunicationParameters) -> str:
    try:
        geometry = Geometry.of_reference(parameters.sharers[name])
    except ModelError:
        return ""
    used = dict.fromkeys(c.codec for c in parameters.all_channels().values() if c.via == "fuser")
    sizes = {
        codec: message_bytes(
            geometry, parameters.codec_table[codec], streams=geometry.streams, tokens=TOKENS, sent=TOKENS,
            contiguous=True, bits=None,
        )
        for codec in used
    }  # fmt: skip
    told = ", ".join(f"{codec} {size / TOKENS:,.0f}" for codec, size in sizes.items() if size is not None)
    return f"bytes a token from {name}, all gates open, at {TOKENS} tokens: {told}"
