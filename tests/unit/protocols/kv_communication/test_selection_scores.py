from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from nullarm.errors import ModelError
from nullarm.models.load import load_causal_lm
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.fuser.projector import KV
from nullarm.protocols.kv_communication.selection.queries import Queries, captured_queries
from nullarm.protocols.kv_communication.selection.scores import (
    delta,
    expected_attention,
    key_norm,
    last_attention,
    value_norm,
)

CLASSES = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"]
PROMPTS = [[5, 17, 99, 200, 31, 7, 450, 12, 88, 61, 300], [9, 8, 400, 6, 77, 301, 12]]

Prefilled = tuple[dict[int, KV], Tensor, Queries, Any]


def tiny(name: str) -> Any:
    model, _ = load_causal_lm(f"random:{name}", model_kwargs={"attn_implementation": "eager"})
    return model


def prefilled(model: Any, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Cache, mask, queries and the model's own output with attentions, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    cache = DynamicCache()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), captured_queries(model, range(model.config.num_hidden_layers)) as queries:
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, output_attentions=True
        )
    return {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers)}, mask.bool(), queries, output


def rotated(vectors: Tensor, rotary: Any, positions: Tensor) -> Tensor:
    """By the model's own embedding, written out: `[…, head_dim]` at `positions […]`."""
    cos, sin = rotary(vectors, positions.reshape(1, -1))
    cos, sin = (part.view(*positions.shape, -1) for part in (cos, sin))
    first, second = vectors.chunk(2, dim=-1)
    turned: Tensor = vectors * cos + torch.cat([-second, first], dim=-1) * sin
    return turned


@pytest.mark.parametrize("name", CLASSES)
def test_captured_queries_are_those_that_the_model_attends_with(name: str) -> None:
    model = tiny(name)
    cache, _, queries, output = prefilled(model, PROMPTS[:1])
    for layer, (key, _) in cache.items():
        asked = queries.by_layer[layer]
        positions = torch.arange(asked.shape[2]).expand(asked.shape[1], -1)
        turned = rotated(asked[0], model.model.rotary_emb, positions)
        logits = turned @ key[0].repeat_interleave(2, 0).transpose(1, 2) / key.shape[-1] ** 0.5
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        attention = logits.masked_fill(~causal, -torch.inf).softmax(-1)
        torch.testing.assert_close(attention, output.attentions[layer][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_the_last_tokens_attention_is_the_models_own(name: str) -> None:
    cache, mask, queries, output = prefilled(tiny(name), PROMPTS)
    scores = last_attention(cache, mask, queries)
    own = torch.stack([a[:, :, -1].mean(dim=1) for a in output.attentions]).mean(dim=0)
    for row, prompt in enumerate(PROMPTS):
        n = len(prompt)
        torch.testing.assert_close(scores[row, -n:], own[row, -n:] * n, rtol=1e-4, atol=1e-5)


def kvpress_formula(cache: Mapping[int, KV], queries: Queries, n_future: int) -> Tensor:
    """Of one item without padding: the published formula with the mean rotation as a matrix, then an equal say."""
    parts = []
    for layer, (key, value) in cache.items():
        keys, values, asked = key[0], value[0], queries.by_layer[layer][0]
        heads, n, width = keys.shape
        future = torch.arange(n, n + n_future)
        unit = torch.eye(width)
        each = [rotated(unit, queries.rotary, p.expand(width)).T for p in future]
        turn = torch.stack(each).mean(0)
        for head in range(heads):
            group = asked.shape[0] // heads
            attention = torch.zeros(n)
            for q in asked[head * group : (head + 1) * group]:
                mean, cov = q[4:].mean(0) @ turn.T, turn @ torch.cov(q[4:].T, correction=0) @ turn.T
                k = keys[head]
                logits = k @ mean / width**0.5 + torch.einsum("ni,ij,nj->n", k, cov, k) / width / 2
                attention += logits.softmax(0) / group
            worth = attention * values[head].norm(dim=-1)
            parts.append(worth / worth.mean())
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])
def test_expected_attention_is_the_published_formula(name: str) -> None:
    cache, mask, queries, _ = prefilled(tiny(name), PROMPTS[:1])
    scores = expected_attention(cache, mask, queries, future=40)
    torch.testing.assert_close(scores[0], kvpress_formula(cache, queries, 40), rtol=1e-4, atol=1e-5)


FREQUENCIES = torch.tensor([0.9, 0.01])
"""Radians a position: a quick pair and a slow one."""


class Rotary(nn.Module):
    """A rotary embedding of two pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(FREQUENCIES)
        self.attention_scaling = 1.0


def spread_queries(tokens: int, generator: torch.Generator, *, mean: Tensor) -> Queries:
    """One layer, one head: normal about a mean."""
    asked = mean + 0.5 * torch.randn(1, 1, tokens, 4, generator=generator)
    return Queries(Rotary(), {0: asked})


def test_expected_attention_agrees_with_the_attention_of_sampled_queries_to_come() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, future = 400, 64
    queries = spread_queries(tokens, generator, mean=torch.tensor([0.3, 1.0, -0.2, 0.8]))
    key, value = torch.randn(2, 1, 1, tokens, 4, generator=generator)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    scores = expected_attention({0: (key, value)}, mask, queries, future=future)[0]

    asked = queries.by_layer[0][0, 0]
    angles = (tokens + torch.arange(future)).repeat_interleave(200)[:, None] * FREQUENCIES
    spread = torch.linalg.cholesky(torch.cov(asked.T, correction=0))
    drawn = asked.mean(0) + torch.randn(len(angles), 4, generator=generator) @ spread.T
    first, second = drawn.chunk(2, dim=-1)
    turned = torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )
    paid = (turned @ key[0, 0].T / 2).softmax(-1).mean(0) * value[0, 0].norm(dim=-1)
    paid = paid / paid.mean()
    assert torch.corrcoef(torch.stack([scores, paid]))[0, 1] > 0.99
    assert len(set(scores.topk(40).indices.tolist()) & set(paid.topk(40).indices.tolist())) >= 34


def test_a_key_that_all_queries_look_for_is_first() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.0, 2.0, 0.0, 0.0])
    queries = spread_queries(50, generator, mean=mean)
    key, value = 0.3 * torch.randn(2, 1, 1, 50, 4, generator=generator)
    value[0, 0] /= value[0, 0].norm(dim=-1, keepdim=True)
    key[0, 0, 23] = torch.tensor([0.0, 4.0, 0.0, 3.0])  # the slow pair, as turned by 50 to 80 positions
    mask = torch.ones(1, 50, dtype=torch.bool)
    assert expected_attention({0: (key, value)}, mask, queries, future=30)[0].argmax() == 23
    key[0, 0, 23] = torch.tensor([0.0, -4.0, 0.0, -3.0])
    assert expected_attention({0: (key, value)}, mask, queries, future=30)[0].argmin() == 23


def test_the_first_tokens_queries_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = spread_queries(20, generator, mean=torch.ones(4))
    key, value = torch.randn(2, 1, 1, 20, 4, generator=generator)
    cache = {0: (key, value)}
    mask = torch.ones(1, 20, dtype=torch.bool)
    scores = expected_attention(cache, mask, queries)
    queries.by_layer[0][:, :, :4] = 100.0
    assert torch.equal(expected_attention(cache, mask, queries), scores)
    queries.by_layer[0][:, :, 4] = 100.0
    assert not torch.equal(expected_attention(cache, mask, queries), scores)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_a_prompt_of_few_tokens_has_scores(length: int) -> None:
    cache, mask, queries, _ = prefilled(tiny("tiny-llama"), [PROMPTS[0][:length]])
    assert expected_attention(cache, mask, queries).isfinite().all()
    assert last_attention(cache, mask, queries).isfinite().all()


def of_all(prompts: Sequence[Sequence[int]], model: Any) -> dict[str, Tensor]:
    cache, mask, queries, _ = prefilled(model, prompts)
    fused = [(key + value, value * 1.5) for key, value in cache.values()]
    return {
        "key_norm": key_norm(cache, mask),
        "value_norm": value_norm(cache, mask),
        "expected_attention": expected_attention(cache, mask, queries),
        "last_attention": last_attention(cache, mask, queries),
        "delta": delta(list(cache.values()), fused, mask),
    }


def test_scores_do_not_depend_on_the_batch_and_padding_is_never_sent() -> None:
    model = tiny("tiny-qwen3")
    together = of_all(PROMPTS, model)
    short = len(PROMPTS[1])
    for name, alone in of_all(PROMPTS[1:], model).items():
        torch.testing.assert_close(together[name][1:, -short:], alone, rtol=1e-4, atol=1e-5)
        assert (together[name][1, :-short] == -torch.inf).all(), name
        assert together[name].dtype == torch.float32


def test_a_row_without_tokens_has_no_score_and_does_no_harm() -> None:
    model = tiny("tiny-llama")
    with captured_queries(model, [0, 1]) as queries:
        made = prefill(model, [PROMPTS[1], []])
    cache = dict(enumerate(made.kv))
    for scores in (expected_attention(cache, made.mask, queries), last_attention(cache, made.mask, queries)):
        assert scores[0].isfinite().all()
        assert scores[1].eq(-torch.inf).all()


def test_small_keys_and_large_values_are_sent_first() -> None:
    length = torch.tensor([3.0, 1.0, 2.0])
    cache = {0: ((length * torch.ones(1, 1, 4, 1)).transpose(2, 3), (length * torch.ones(1, 1, 4, 1)).transpose(2, 3))}
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert key_norm(cache, mask)[0].tolist() == pytest.approx([-1.5, -0.5, -1.0])
    assert value_norm(cache, mask)[0].tolist() == pytest.approx([1.5, 0.5, 1.0])


def test_a_layer_of_large_numbers_has_no_more_say_than_another() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    falling, rising = torch.tensor([[[[2.0], [1.0]]]]), torch.tensor([[[[1.0], [2.0]]]])
    scores = value_norm({0: (falling, 100 * falling), 1: (rising, rising)}, mask)
    assert scores[0].tolist() == pytest.approx([1.0, 1.0])


def test_a_zeroed_cache_prefers_no_token() -> None:
    cache, mask, queries, _ = prefilled(tiny("tiny-llama"), PROMPTS[:1])
    zeros = {layer: (torch.zeros_like(k), torch.zeros_like(v)) for layer, (k, v) in cache.items()}
    for scores in (key_norm(zeros, mask), value_norm(zeros, mask), expected_attention(zeros, mask, queries)):
        assert scores.eq(0).all()


def test_delta_finds_the_token_that_fusing_changes_most() -> None:
    cache, mask, _, _ = prefilled(tiny("tiny-llama"), PROMPTS[:1])
    own = list(cache.values())
    fused = [(key.clone(), value.clone()) for key, value in own]
    assert delta(own, fused, mask).abs().max() == 0
    fused[1][1][:, :, 3] += 5.0
    fused[0][0][:, :, 6] += 0.5
    assert delta(own, fused, mask)[0].argsort(descending=True)[:2].tolist() == [3, 6]


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_capturing_leaves_the_model_as_it_was(fails: bool) -> None:
    model = tiny("tiny-qwen3")
    before, frequencies = copy.deepcopy(model.state_dict()), model.model.rotary_emb.inv_freq.clone()
    try:
        with torch.no_grad(), captured_queries(model, [0]) as queries:
            plain = model(torch.tensor([[1, 2, 3]])).logits
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert hooks_of(model) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    queries.turns(torch.tensor([[5000]]))
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert queries.by_layer.keys() == {0}
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, plain)


def test_a_model_whose_queries_are_not_known_is_refused() -> None:
    model, _ = load_causal_lm("random:tiny-gpt2")
    words = "queries are not known to be at hand here; got 'GPT2LMHeadModel'; valid: LlamaForCausalLM, "
    with pytest.raises(ModelError, match=words), captured_queries(model, [0]):
        pass


def test_a_layer_that_is_not_there_is_refused() -> None:
    model = tiny("tiny-llama")
    with (
        pytest.raises(ModelError, match=r"there is no such layer; got \[2\]; valid: 0 to 1"),
        captured_queries(model, [0, 2]),
    ):
        pass
    assert hooks_of(model) == 0
