from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from nullarm.errors import InvalidResult
from nullarm.models.load import load_causal_lm
from nullarm.protocols.kv_communication.allocation.allocate import allocate
from nullarm.protocols.kv_communication.allocation.sensitivity import deliver, divergence, sensitivities, statistics
from nullarm.protocols.kv_communication.communication.prefill import cache_of, prefill
from nullarm.protocols.kv_communication.geometry import HALVES, Geometry, Stream
from nullarm.protocols.kv_communication.wire.codec import Asymmetric, Codec, Kivi, Outlier, Raw, Rotated, Symmetric
from nullarm.protocols.kv_communication.wire.message import Message, encode_many

ITEMS, HEADS, TOKENS, WIDTH = 3, 2, 7, 8
LENGTHS = (7, 4, 5)
GEOMETRY = Geometry(2, HEADS, WIDTH)
MASK = torch.tensor([[place >= TOKENS - n for place in range(TOKENS)] for n in LENGTHS])


def planted(seed: int = 0) -> dict[Stream, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {stream: torch.randn(ITEMS, HEADS, TOKENS, WIDTH, generator=generator) for stream in GEOMETRY.streams}


def answer_from(weights: Mapping[Stream, float]) -> Any:
    """An answer among four choices, linear in the real tokens of every stream, by weight."""
    readout = torch.randn(HEADS * WIDTH, 4, generator=torch.Generator().manual_seed(1))

    def answer(streams: Mapping[Stream, Tensor]) -> Tensor:
        logits = torch.zeros(ITEMS, 4)
        for stream, numbers in streams.items():
            seen = numbers.transpose(1, 2).flatten(2) * MASK[..., None]
            logits = logits + weights.get(stream, 0.0) * (seen.sum(1) @ readout)
        return logits.log_softmax(-1)

    return answer


def test_a_stream_arrives_as_it_was_and_padding_is_not_sent() -> None:
    stream, numbers = Stream(1, "key"), planted()[Stream(1, "key")]
    delivered = deliver(stream, numbers, MASK, Raw(dtype="float32"))
    assert torch.equal(delivered.numbers, numbers)
    assert delivered.numbers.data_ptr() != numbers.data_ptr()
    changed = numbers.clone()
    changed[1, :, 0] = 1e6
    assert deliver(stream, changed, MASK, Symmetric(bits=8)).numbers[1, :, 3:].abs().max() < 10
    assert torch.equal(deliver(stream, changed, MASK, Symmetric(bits=8)).numbers[1, :, 0], changed[1, :, 0])


@pytest.mark.parametrize("codec", [Asymmetric(), Rotated(group=4), Outlier(), Kivi(group=4, window=2)])
def test_the_bytes_of_streams_add_up_to_those_of_a_message_of_all(codec: Codec) -> None:
    streams = planted()
    widths = dict(zip(streams, (1, 2, 4, 8), strict=True))
    parts = sum(deliver(stream, streams[stream], MASK, codec, widths[stream]).bytes_per_token for stream in streams)
    sent = [
        Message(n, torch.arange(n), {stream: whole[i, :, TOKENS - n :] for stream, whole in streams.items()})
        for i, n in enumerate(LENGTHS)
    ]
    empty = [Message(n, torch.arange(n), {}) for n in LENGTHS]
    whole = sum(map(len, encode_many(sent, codec, widths))) - sum(map(len, encode_many(empty, codec)))
    assert parts * sum(LENGTHS) == pytest.approx(whole)


def test_a_narrower_stream_that_is_entropy_coded_is_measured_too() -> None:
    stream, codec = Stream(0, "key"), Asymmetric(entropy=True)
    numbers = planted()[stream]
    sizes = [deliver(stream, numbers, MASK, codec, bits).bytes_per_token for bits in (8, 1)]
    assert sizes[0] > sizes[1] > 0


def test_a_stream_that_matters_is_sensitive_and_gets_more_bits() -> None:
    heavy = Stream(1, "value")
    weights = dict.fromkeys(GEOMETRY.streams, 0.01) | {heavy: 1.0, Stream(0, "key"): 0.0}
    rows = list(sensitivities("g8", Asymmetric(group=8), (1, 2, 4, 8), planted(), MASK, answer_from(weights)))
    assert [set(row) for row in rows] == [{"codec", "layer", "half", "bits", "kl", "bytes_per_token"}] * 16
    by_stream = {stream: [r["kl"] for r in rows if (r["layer"], r["half"]) == stream] for stream in GEOMETRY.streams}
    assert by_stream[Stream(0, "key")] == [0.0] * 4
    assert by_stream[heavy] == sorted(by_stream[heavy], reverse=True)
    assert min(by_stream[heavy][:3]) > 10 * max(max(kl) for stream, kl in by_stream.items() if stream != heavy)
    bits = allocate(rows, (1, 2, 4, 8), mean_bits=2)
    assert bits[heavy] == 4
    assert bits[Stream(0, "key")] == 1


def test_the_answer_is_asked_for_once_for_each_row_with_one_stream_changed() -> None:
    asked: list[list[Stream]] = []
    streams = planted()

    def answer(given: Mapping[Stream, Tensor]) -> Tensor:
        assert list(given) == list(streams)
        asked.append([stream for stream in given if not torch.equal(given[stream], streams[stream])])
        return torch.zeros(ITEMS, 2)

    rows = list(sensitivities("a", Asymmetric(), (1, 2), streams, MASK, answer))
    assert asked == [[], *([stream] for stream in streams for _ in range(2))]
    assert {row["kl"] for row in rows} == {0.0}


def test_sensitivity_of_a_real_model_falls_with_the_bits_and_its_own_cache_has_none() -> None:
    model, _ = load_causal_lm("random:tiny-llama")
    prompts = [[5, 17, 99, 200, 31, 7, 450, 12], [9, 8, 400, 6, 77]]
    made = prefill(model, prompts)
    streams = {Stream(i, half): part for i, kv in enumerate(made.kv) for half, part in zip(HALVES, kv, strict=True)}

    def answer(given: Mapping[Stream, Tensor]) -> Tensor:
        cache = cache_of([(given[Stream(i, "key")], given[Stream(i, "value")]) for i in range(2)])
        mask = torch.cat([made.mask, torch.ones(2, 1, dtype=torch.bool)], dim=1)
        with torch.no_grad():
            logits: Tensor = model(
                torch.tensor([[3], [3]]), attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).logits[:, -1]  # fmt: skip
        return logits.log_softmax(-1)

    rows = list(sensitivities("r", Rotated(group=8), (1, 2, 4, 8), streams, made.mask, answer))
    total = {bits: sum(row["kl"] for row in rows if row["bits"] == bits) for bits in (1, 2, 4, 8)}
    assert total[1] > total[2] > total[4] > total[8] > 0
    (whole,) = sensitivities(
        "raw",
        Raw(dtype="float32"),
        (32,),
        {Stream(0, "key"): streams[Stream(0, "key")]},
        made.mask,
        lambda s: answer({**streams, **s}),
    )
    assert whole["kl"] == 0.0


def test_statistics_are_those_of_the_real_tokens() -> None:
    streams = planted()
    for row, (stream, numbers) in zip(
        statistics("int8", Symmetric(bits=8), streams, MASK), streams.items(), strict=True
    ):
        sent = torch.cat([numbers[i, :, TOKENS - n :].transpose(0, 1) for i, n in enumerate(LENGTHS)]).double()
        got = deliver(stream, numbers, MASK, Symmetric(bits=8))
        back = torch.cat([got.numbers[i, :, TOKENS - n :].transpose(0, 1) for i, n in enumerate(LENGTHS)]).double()
        assert (row["codec"], row["layer"], row["half"], row["tokens"]) == ("int8", *stream, sum(LENGTHS))
        assert row["amax"] == pytest.approx(sent.abs().max().item())
        assert row["relative_error"] == pytest.approx(
            ((back - sent).square().sum() / sent.square().sum()).sqrt().item()
        )
        assert row["largest_error"] == pytest.approx(((back - sent).abs().max() / sent.abs().max()).item())
        assert 0 < row["largest_error"] <= 0.5 / 127 * 1.01
        cosines = (sent * back).sum(-1) / (sent.norm(dim=-1) * back.norm(dim=-1))
        assert row["cosine"] == pytest.approx(cosines.mean().item())
        assert row["bytes_per_token"] == got.bytes_per_token > HEADS * WIDTH


def test_a_lossless_codec_and_a_zeroed_cache_have_no_error() -> None:
    for row in statistics("fp32", Raw(dtype="float32"), planted(), MASK):
        assert (row["relative_error"], row["largest_error"], row["cosine"]) == (0.0, 0.0, pytest.approx(1.0))
    zeros = {Stream(0, "key"): torch.zeros(ITEMS, HEADS, TOKENS, WIDTH)}
    (row,) = statistics("int8", Symmetric(bits=8), zeros, MASK)
    assert (row["relative_error"], row["largest_error"], row["amax"]) == (0.0, 0.0, 0.0)


def test_divergence_is_that_of_kullback_and_leibler_mean_over_items() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    by_hand = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()).item() / 2
    assert divergence(p.log(), q.log()) == pytest.approx(by_hand)
    assert divergence(p.log() - 3, q.log() + 1) == pytest.approx(by_hand)
    assert 0 <= divergence(p.log(), p.log() + 1e-7) < 1e-12
    sure = torch.tensor([[1.0, 0.0]]).log()
    assert divergence(sure, torch.tensor([[0.5, 0.5]]).log()) == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("broken", [[0.0, -torch.inf], [torch.nan, 0.0]])
def test_an_answer_that_falls_apart_is_refused(broken: list[float]) -> None:
    with pytest.raises(
        InvalidResult, match="the answer with a stream quantised is no distribution near that without; got "
    ):
        divergence(torch.zeros(1, 2), torch.tensor([broken]))
