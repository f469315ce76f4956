"""Rejection sampling: exact by enumeration, and what speculative decoding samples, by chi-square."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nullarm.errors import UsageError
from nullarm.protocols.low_rank.speculation import rejection
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import Greedy, Sampling, acceptance, residual, rule

WORDS = 3
LENGTH = 3
"""Tokens of the texts that are sampled: 27 texts."""
TEXTS = 800
TEMPERATURE = 0.8


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def distributions(generator: torch.Generator, words: int) -> Tensor:
    """Two in fp64, of which some chances are 0."""
    logits = 3 * torch.randn(2, words, generator=generator, dtype=torch.float64)
    logits[torch.rand(2, words, generator=generator) < 0.2] = -math.inf
    logits[:, 0] = 0.0
    return torch.softmax(logits, -1)


def law(p: Tensor, q: Tensor) -> Tensor:
    """The chance of each token to be written: drafted and kept, or drawn after whatever was refused."""
    drawn = q > 0
    kept = torch.where(drawn, q * acceptance(p, q), 0.0)
    return kept + (q - kept).sum() * residual(p, q)


@pytest.mark.parametrize("words", [2, 7, 50])
def test_what_is_written_has_exactly_the_distribution_of_the_verifier(words: int, generator: torch.Generator) -> None:
    for _ in range(50):
        p, q = distributions(generator, words)
        assert (law(p, q) - p).abs().max() < 1e-12
        assert (law(p, p) - p).abs().max() < 1e-12


def test_texts_of_two_drafted_tokens_are_exact_too(generator: torch.Generator) -> None:
    """Enumerated over every draft and verdict: first tokens, then second ones given the first."""
    p1, q1 = distributions(generator, 4)
    second = {first: distributions(generator, 4) for first in range(4)}
    found = torch.zeros(4, 4, dtype=torch.float64)
    for first in range(4):
        kept = q1[first] * min(1.0, float(p1[first] / q1[first])) if q1[first] > 0 else 0.0
        corrected = float(law(p1, q1)[first]) - float(kept)
        p2, q2 = second[first]
        found[first] = kept * law(p2, q2) + corrected * p2  # after a correction the next round starts, with any draft
    expected = torch.stack([p1[first] * second[first][0] for first in range(4)])
    assert (found - expected).abs().max() < 1e-12


def test_nothing_is_left_where_only_rounding_refuses() -> None:
    p = torch.tensor([0.25, 0.75])
    q = torch.tensor([0.25, 0.7500001])
    assert residual(p, q).tolist() == p.tolist()


def test_the_bonus_token_is_of_the_verifier() -> None:
    p = torch.tensor([0.25, 0.25, 0.5])
    assert residual(p, torch.zeros(3)).tolist() == p.tolist()


def test_a_certain_verifier_keeps_what_it_wants_and_corrects_the_rest(generator: torch.Generator) -> None:
    wants = [2, 0, 1]
    verifier = torch.full((4, 3), -math.inf)
    verifier[range(4), [*wants, 2]] = 0.0
    drafter = torch.zeros(3, 3)
    for sampling in (Sampling(1.0, generator), Greedy()):
        for drafted, kept in (([2, 0, 1], 3), ([2, 0, 0], 2), ([2, 1, 1], 1), ([0, 0, 1], 0)):
            accepted, following = sampling.judge(verifier, drafter, torch.tensor(drafted))
            assert (int(accepted), following.tolist()) == (kept, [[*wants, 2][kept]])


def test_without_a_draft_the_verifier_draws(generator: torch.Generator) -> None:
    logits = torch.tensor([[0.0, -math.inf]])
    for sampling in (Sampling(1.0, generator), Greedy()):
        accepted, following = sampling.judge(logits, logits[:0], torch.tensor([], dtype=torch.long))
        assert (int(accepted), following.tolist()) == (0, [0])


def test_kept_as_often_as_p_over_q_says(generator: torch.Generator) -> None:
    p, q = torch.tensor([[0.3, 0.7], [0.5, 0.5]]), torch.tensor([[0.6, 0.4]])
    sampling, drafted = Sampling(1.0, generator), torch.tensor([0])
    kept = sum(int(sampling.judge(p.log(), q.log(), drafted)[0]) for _ in range(2000))
    assert stats.binomtest(kept, 2000, 0.5).pvalue > 1e-3


def test_a_temperature_names_the_rule(generator: torch.Generator) -> None:
    assert isinstance(rule(0.0, generator), Greedy)
    assert isinstance(rule(0.5, generator), Sampling)
    with pytest.raises(UsageError, match=r"a temperature is negative; got -0.5; valid: 0 \(greedy\) or more"):
        rule(-0.5, generator)


def test_hotter_is_flatter(generator: torch.Generator) -> None:
    logits = torch.tensor([[0.0, 3.0]]).repeat(500, 1)
    colder, hotter = (Sampling(t, generator).draw(logits).float().mean() for t in (0.5, 5.0))
    assert colder > 0.98
    assert 0.5 < hotter < 0.75


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.8, max_position_embeddings=32, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[LlamaForCausalLM, LlamaForCausalLM]]:
    """Two models that disagree."""
    with torch.random.fork_rng(devices=[]):
        yield tiny(1), tiny(2)


def chi_square(pair: tuple[LlamaForCausalLM, LlamaForCausalLM], generator: torch.Generator) -> float:
    """P value of the texts written, against those that the verifier's own sampling would write."""
    verifier, drafter = pair
    prompt, sampling = torch.tensor([[0, 1]]), Sampling(TEMPERATURE, generator)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(TEXTS):
        seen[speculate(verifier, drafter, prompt, LENGTH, draft_length=2, rule=sampling).tokens] += 1
    texts = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))
    with torch.no_grad():
        logits = verifier(torch.cat([prompt.expand(len(texts), -1), texts], 1)).logits[:, 1:-1].double()
    chances = torch.log_softmax(logits / TEMPERATURE, -1).gather(2, texts[..., None])[..., 0].sum(1).exp()
    expected = (TEXTS * chances).tolist()
    found = [seen[tuple(text)] for text in texts.tolist()]
    assert sum(found) == TEXTS
    often = [e >= 5 for e in expected]
    cells = [(f, e) for f, e, o in zip(found, expected, often, strict=True) if o]
    rest = [(f, e) for f, e, o in zip(found, expected, often, strict=True) if not o]
    cells += [(sum(f for f, _ in rest), sum(e for _, e in rest))] if rest else []
    return float(stats.chisquare([f for f, _ in cells], [e for _, e in cells]).pvalue)


def test_texts_are_distributed_as_the_verifiers_own(
    pair: tuple[LlamaForCausalLM, LlamaForCausalLM], generator: torch.Generator
) -> None:
    assert chi_square(pair, generator) > 1e-3


def test_the_chi_square_sees_a_wrong_residual(
    pair: tuple[LlamaForCausalLM, LlamaForCausalLM], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing from p after a refusal is the usual mistake."""
    monkeypatch.setattr(rejection, "residual", lambda p, q: p)
    assert chi_square(pair, generator) < 1e-4
