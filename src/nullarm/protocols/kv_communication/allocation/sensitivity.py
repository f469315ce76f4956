"""What a codec does to each stream alone: to its numbers, and to the answer.

Everything goes through the wire, as it does in an evaluation. A stream is `[items, heads, tokens, head_dim]`, `mask` is
`[items, tokens]`, true where a token is; what stands at padding is not sent, and comes back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nullarm.errors import InvalidResult
from nullarm.protocols.kv_communication.geometry import Stream
from nullarm.protocols.kv_communication.wire.codec import Codec
from nullarm.protocols.kv_communication.wire.message import Message, decode_many, encode_many

Answer = Callable[[Mapping[Stream, Tensor]], Tensor]
"""Log-probabilities `[items, choices]`, or of the whole vocabulary, that follow from these streams."""


@dataclass(frozen=True)
class Delivered:
    """A stream after the wire.

    Attributes:
        numbers: `[items, heads, tokens, head_dim]`, in the dtype and on the device of what was sent.
        bytes_per_token: Bytes of the messages beyond those of messages without any stream, over all tokens.
    """

    numbers: Tensor
    bytes_per_token: float


def deliver(stream: Stream, numbers: Tensor, mask: Tensor, codec: Codec, bits: int | None = None) -> Delivered:
    """Encode every item's tokens of one stream, and decode them.

    Args:
        stream: Which one.
        numbers: `[items, heads, tokens, head_dim]`.
        mask: `[items, tokens]`.
        codec: How.
        bits: Width in place of the codec's own.
    """
    there = mask.bool()
    lengths = there.sum(dim=-1).tolist()
    sent = [row[:, at] for row, at in zip(numbers, there, strict=True)]
    blobs = _encoded(lengths, [{stream: part} for part in sent], codec, {stream: bits} if bits else None)
    empty = _encoded(lengths, [{} for _ in sent], codec, None)
    received = numbers.clone()
    for row, at, message in zip(received, there, decode_many(blobs, device=numbers.device), strict=True):
        row[:, at] = message.streams[stream].to(row.dtype)
    return Delivered(received, (sum(map(len, blobs)) - sum(map(len, empty))) / sum(lengths))


def sensitivities(
    name: str, codec: Codec, widths: Sequence[int], streams: Mapping[Stream, Tensor], mask: Tensor, answer: Answer
) -> Iterator[dict[str, Any]]:
    """Rows of the table SENSITIVITY: every stream at every width, all others as they are.

    Args:
        name: The codec's name.
        codec: The codec.
        widths: Bits, in place of the codec's own.
        streams: What crosses the wire.
        mask: Its tokens.
        answer: Called once with the streams as they are, and once for each row.

    Raises:
        InvalidResult: An answer is not a distribution.
    """
    undisturbed = answer(streams)
    for stream, numbers in streams.items():
        for bits in widths:
            delivered = deliver(stream, numbers, mask, codec, bits)
            yield {
                "codec": name,
                "layer": stream.layer,
                "half": stream.half,
                "bits": bits,
                "kl": divergence(undisturbed, answer({**streams, stream: delivered.numbers})),
                "bytes_per_token": delivered.bytes_per_token,
            }


def statistics(name: str, codec: Codec, streams: Mapping[Stream, Tensor], mask: Tensor) -> Iterator[dict[str, Any]]:
    """Rows of the table STATISTICS: every stream at the codec's own width, over the tokens of all items.

    The cosine is the mean over heads and tokens.
    """
    there = mask.bool()
    for stream, numbers in streams.items():
        delivered = deliver(stream, numbers, mask, codec)
        before, after = (whole.transpose(1, 2)[there].double() for whole in (numbers, delivered.numbers))
        amax, norm = before.abs().max(), before.norm()
        tiny = torch.finfo(torch.float64).tiny
        yield {
            "codec": name,
            "layer": stream.layer,
            "half": stream.half,
            "tokens": len(before),
            "bytes_per_token": delivered.bytes_per_token,
            "relative_error": ((after - before).norm() / norm.clamp_min(tiny)).item(),
            "largest_error": ((after - before).abs().max() / amax.clamp_min(tiny)).item(),
            "cosine": torch.cosine_similarity(before, after, dim=-1, eps=tiny).mean().item(),
            "amax": amax.item(),
        }


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over items of KL(reference ‖ other), nats.

    Args:
        reference: Log-probabilities `[items, choices]`; they are normalised first.
        other: The same.

    Raises:
        InvalidResult: It is infinite or not a number.
    """
    p, q = (given.double().log_softmax(dim=-1) for given in (reference, other))
    parts = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))
    kl = parts.sum(dim=-1).mean().item()
    if not kl < torch.inf:
        raise InvalidResult("the answer with a stream quantised is no distribution near that without", value=kl)
    return max(kl, 0.0)


def _encoded(
    lengths: Sequence[int],
    streams: Sequence[Mapping[Stream, Tensor]],
    codec: Codec,
    bits: Mapping[Stream, int] | None,
) -> list[bytes]:
    messages = [Message(n, torch.arange(n), part) for n, part in zip(lengths, streams, strict=True)]
    return encode_many(messages, codec, bits)
