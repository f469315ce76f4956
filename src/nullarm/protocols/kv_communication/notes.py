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
    """One line on sizes for each sharer whose shape is known here, and one on what has to be downloaded."""
    need, _ = download_bytes([parameters.receiver, *parameters.sharers.values()])
    sharers = {fuser.sharer for fuser in parameters.fusers.values()}
    sizes = [_sizes(name, parameters) for name in parameters.sharers if name in sharers]
    downloads = [f"downloads about {need / (1 << 30):.0f} GiB to HF_HOME"] if need else []
    return tuple(line for line in (*sizes, *downloads) if line)


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
