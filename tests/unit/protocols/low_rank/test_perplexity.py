"""Likelihoods of windows, and what they add up to."""

from collections.abc import Sequence
from functools import cache
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch

from nullarm.errors import InvalidResult
from nullarm.models.instantiate import instantiate
from nullarm.models.load import load_tokenizer
from nullarm.models.texts import Document
from nullarm.models.texts.world import WorldText
from nullarm.protocols.low_rank.perplexity import likelihoods
from nullarm.protocols.low_rank.perplexity.likelihoods import window_likelihoods
from nullarm.protocols.low_rank.perplexity.measures import Likelihood, interval, perplexities
from nullarm.protocols.low_rank.perplexity.streams import tokenise
from nullarm.protocols.low_rank.perplexity.windows import Window, windows

LENGTH = 24


@cache
def model(name: str = "tiny-llama") -> Any:
    return instantiate(name, device="cpu")


@cache
def documents() -> Sequence[Document]:
    return WorldText(train_documents=1, test_documents=5, document_length=3).documents("test")


def cut(length: int = LENGTH, stride: int = LENGTH, first: int | None = None) -> list[Window]:
    return windows(tokenise(documents()[:first], load_tokenizer("random:tiny-llama")), length=length, stride=stride)


def by_the_guide(ids: torch.Tensor, max_length: int, stride: int) -> tuple[float, int]:
    """Sum of NLL and tokens, by the loop of https://huggingface.co/docs/transformers/perplexity."""
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, ids.shape[1], stride):
        end_loc = min(begin_loc + max_length, ids.shape[1])
        trg_len = end_loc - prev_end_loc
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            neg_log_likelihood = model()(input_ids, labels=target_ids).loss
        num_loss_tokens = int((target_ids != -100).sum()) - int((target_ids[:, 0] != -100).sum())
        nll_sum += float(neg_log_likelihood) * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == ids.shape[1]:
            break
    return nll_sum, n_tokens


@pytest.mark.parametrize("stride", [1, 5, 12, 24])
def test_equal_to_the_loop_of_the_guide(stride: int) -> None:
    rows = window_likelihoods(model(), cut(stride=stride, first=2), batch_size=4)
    for stream in tokenise(documents()[:2], load_tokenizer("random:tiny-llama")):
        nll, tokens = by_the_guide(torch.from_numpy(stream.ids)[None], LENGTH + 1, stride)
        own = [row for row in rows if row.cluster == stream.documents[0]]
        assert sum(row.tokens for row in own) == tokens
        assert sum(row.nll for row in own) == pytest.approx(nll, rel=1e-6)


def test_stride_one_is_one_token_at_a_time() -> None:
    [stream] = tokenise(documents()[:1], load_tokenizer("random:tiny-llama"))
    ids = torch.from_numpy(stream.ids)
    total = 0.0
    for n in range(1, len(ids)):
        with torch.no_grad():
            logits = model()(ids[None, max(0, n - LENGTH) : n]).logits[0, -1]
        total -= float(logits.log_softmax(-1)[ids[n]])
    rows = window_likelihoods(model(), cut(stride=1, first=1), batch_size=16)
    assert sum(row.nll for row in rows) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-mistral", "tiny-gemma2", "tiny-gpt2"])
def test_batches_of_unlike_length_change_nothing(name: str) -> None:
    asked = cut(stride=10)
    assert len({len(window.ids) for window in asked}) > 2
    alone, together = (window_likelihoods(model(name), asked, batch_size=size) for size in (1, 7))
    assert [row.item for row in together] == [window.item for window in asked]
    assert [row.nll for row in together] == pytest.approx([row.nll for row in alone], rel=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2"])
def test_equal_to_the_model_s_own_logits(name: str) -> None:
    window = cut(stride=10, first=1)[1]
    assert 0 < window.scored < len(window.ids) - 1
    ids = torch.from_numpy(window.ids)
    with torch.no_grad():
        logs = model(name)(ids[None, :-1]).logits[0].log_softmax(-1)
    wanted = -logs[torch.arange(len(ids) - 1), ids[1:]][-window.scored :].sum()
    [row] = window_likelihoods(model(name), [window], batch_size=1)
    assert row.nll == pytest.approx(float(wanted), rel=1e-6)


def test_logits_are_held_for_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = window_likelihoods(model(), cut(), batch_size=8)
    seen: list[torch.Size] = []
    hook = model().lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    vocabulary = model().config.vocab_size
    monkeypatch.setattr(likelihoods, "LOGITS", 10 * vocabulary)
    try:
        parts = window_likelihoods(model(), cut(), batch_size=8)
    finally:
        hook.remove()
    assert max(shape.numel() for shape in seen) == 10 * vocabulary
    assert sum(shape[0] for shape in seen) == sum(row.tokens for row in parts)
    assert [row.nll for row in parts] == pytest.approx([row.nll for row in whole], rel=1e-6)


def test_logits_of_unscored_tokens_are_not_made() -> None:
    made: list[int] = []
    hook = model().lm_head.register_forward_hook(lambda _module, _inputs, output: made.append(output.shape[0]))
    try:
        rows = window_likelihoods(model(), cut(stride=6), batch_size=3)
    finally:
        hook.remove()
    assert sum(made) == sum(row.tokens for row in rows)


def test_twice_is_the_same_to_the_last_bit() -> None:
    assert window_likelihoods(model(), cut(), batch_size=4) == window_likelihoods(model(), cut(), batch_size=4)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_as_it_was(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = instantiate("tiny-llama", device="cpu").train()
    net.model.layers[0].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if broken:
        monkeypatch.setattr(likelihoods, "cross_entropy", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            window_likelihoods(net, cut(), batch_size=4)
    else:
        window_likelihoods(net, cut(), batch_size=4)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in net.modules())


def test_a_model_that_overflows_is_refused() -> None:
    net = instantiate("tiny-llama", device="cpu")
    with torch.no_grad():
        net.lm_head.weight[0] = float("nan")
    with pytest.raises(InvalidResult, match=r"the likelihood of window test-0/0 is no finite number; got nan; .*dtype"):
        window_likelihoods(net, cut(), batch_size=4)


ROWS = [
    Likelihood("a/0", "a", 10, 8, 40, 25.0),
    Likelihood("a/1", "a", 4, 3, 17, 8.0),
    Likelihood("b/0", "b", 6, 5, 23, 27.0),
]


def test_perplexities_by_hand() -> None:
    found = perplexities(ROWS)
    assert found.token == pytest.approx(exp(60 / 20))
    assert found.word == pytest.approx(exp(60 / 16))
    assert found.byte == pytest.approx(exp(60 / 80))
    assert found.bits_per_byte == pytest.approx(60 / 80 / log(2))


def test_a_perplexity_that_cannot_be_had_is_none() -> None:
    assert perplexities([Likelihood("a/0", "a", 3, 0, 8, 2.0)]).word is None
    found = perplexities([Likelihood("a/0", "a", 300, 1, 0, 2000.0)])
    assert (found.word, found.byte, found.bits_per_byte) == (None, None, None)
    assert found.token == pytest.approx(exp(20 / 3))


def test_no_windows_have_no_perplexity() -> None:
    with pytest.raises(InvalidResult, match="there are no windows to take a perplexity of; valid: a text of at least"):
        perplexities([])


def many(documents: int, rng: np.random.Generator) -> list[Likelihood]:
    """Windows of documents that differ in length and, each as a whole, in difficulty."""
    rows = []
    for document in range(documents):
        hard = rng.normal(2.0, 0.5)
        for window in range(int(rng.integers(1, 6))):
            tokens = int(rng.integers(5, 40))
            rows.append(Likelihood(f"{document}/{window}", str(document), tokens, 1, 1, tokens * hard))
    return rows


def test_the_interval_draws_whole_documents() -> None:
    rows = many(60, np.random.default_rng(0))
    found = interval(rows, np.random.default_rng(1), 0.9)
    assert found is not None
    nll = np.array([sum(r.nll for r in rows if r.cluster == str(d)) for d in range(60)])
    tokens = np.array([sum(r.tokens for r in rows if r.cluster == str(d)) for d in range(60)])
    draws = np.random.default_rng(2).integers(0, 60, (4000, 60))
    plain = np.exp(np.quantile(nll[draws].sum(1) / tokens[draws].sum(1), [0.05, 0.95]))
    assert [found.low, found.high] == pytest.approx(plain.tolist(), rel=0.02)
    assert found.low < (perplexities(rows).token or 0) < found.high
    assert (found.level, found.method) == (0.9, "document bootstrap, percentile")


def test_the_interval_follows_from_its_generator() -> None:
    rows = many(20, np.random.default_rng(0))
    same = [interval(rows, np.random.default_rng(0), 0.9) for _ in range(2)]
    assert same[0] == same[1] != interval(rows, np.random.default_rng(3), 0.9)


def test_one_document_has_no_interval() -> None:
    assert interval(ROWS[:2], np.random.default_rng(0), 0.9) is None
