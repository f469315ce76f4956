from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nullarm.bench.decoding import GreedyDecoding
from nullarm.errors import ModelError, UsageError
from nullarm.models.load import load_causal_lm
from nullarm.models.tiny.world import SKILLS, World
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import Greedy, Rule, Sampling
from nullarm.protocols.low_rank.speculation.result import Round, Speculation, pooled, predicted_speed_up
from nullarm.protocols.low_rank.speculation.subject import SpeculativeDecoding

PROMPTS = 200
TOKENS = 12
GAMMA = 4


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def world() -> Any:
    """`builtin:world`; do not change it."""
    return load_causal_lm("builtin:world")


@pytest.fixture(scope="module")
def prompts(world: Any) -> list[Tensor]:
    rng, words = random.Random(0), World()
    questions = [words.question(SKILLS[i % len(SKILLS)], rng).prompt for i in range(PROMPTS)]
    return [world[1](question, return_tensors="pt").input_ids for question in questions]


@pytest.fixture(scope="module")
def alone(world: Any, prompts: list[Tensor]) -> list[list[int]]:
    """What the verifier writes by itself, a token at a time."""
    return [greedy(world[0], prompt, TOKENS) for prompt in prompts]


def greedy(model: Any, prompt: Tensor, tokens: int) -> list[int]:
    subject = GreedyDecoding("verifier", model, prompt, most=tokens)
    subject.run(tokens)
    written: list[int] = subject.written[0].tolist()
    return written


def compressed(model: Any, rank: int) -> Any:
    """A copy of which every query, key and value matrix has a low rank."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if any(f"{slot}_proj.weight" in name for slot in "qkv"):
                u, s, v = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(u[:, :rank] * s[:rank] @ v[:rank])
    return copied


def noise(model: Any) -> Any:
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return copied


def drafter_of(world: Any, kind: str) -> Any:
    return {"compressed": lambda: compressed(world, 16), "noise": lambda: noise(world), "itself": lambda: world}[kind]()


@pytest.mark.parametrize(("kind", "texts"), [("compressed", PROMPTS), ("noise", 40), ("itself", 40)])
def test_greedy_text_is_the_verifiers_own(
    world: Any, prompts: list[Tensor], alone: list[list[int]], kind: str, texts: int
) -> None:
    drafter = drafter_of(world[0], kind)
    found = [
        speculate(world[0], drafter, prompt, TOKENS, draft_length=GAMMA, rule=Greedy()) for prompt in prompts[:texts]
    ]
    assert [list(f.tokens) for f in found] == alone[:texts]
    whole = pooled(found)
    alpha, share = whole.alpha, whole.acceptance
    assert alpha is not None
    assert share is not None
    assert share <= alpha
    assert {"compressed": 0.2 < alpha < 1, "noise": alpha < 0.2, "itself": alpha == share == 1}[kind]


def without_caches(verifier: Any, drafter: Any, prompt: Tensor, tokens: int, gamma: int) -> list[tuple[int, int]]:
    """Drafted and accepted tokens of every round, by reading the whole text for every token."""

    def following(model: Any, text: list[int]) -> int:
        with torch.no_grad():
            return int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())

    text, rounds = prompt[0].tolist(), []
    end = len(text) + tokens
    while len(text) < end:
        proposed = min(gamma, end - len(text) - 1)
        draft = list(text)
        for _ in range(proposed):
            draft.append(following(drafter, draft))
        start = len(text)
        while len(text) < len(draft) and following(verifier, text) == draft[len(text)]:
            text.append(draft[len(text)])
        rounds.append((proposed, len(text) - start))
        text.append(following(verifier, text))
    return rounds


@pytest.mark.parametrize(
    "name", ["tiny-llama", "tiny-mistral", "tiny-gemma2", "tiny-gemma3", "tiny-qwen3", "tiny-gpt2"]
)
def test_text_past_a_sliding_window_is_as_without_caches(name: str) -> None:
    """Rounds too: a drafter with a wrong cache would write the right text, and be refused more often."""
    model, _ = load_causal_lm(f"random:{name}")
    generator = torch.Generator().manual_seed(0)
    # A head of its own: tied to the embedding, it would repeat one token for ever.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=generator))
    drafter = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    prompt = torch.randint(1, 700, (1, 10), generator=generator)
    found = speculate(model, drafter, prompt, 40, draft_length=3, rule=Greedy())
    assert list(found.tokens) == greedy(model, prompt, 40)
    assert [(r.proposed, r.accepted) for r in found.rounds] == without_caches(model, drafter, prompt, 40, 3)
    assert 0 < sum(found.accepted) < sum(found.proposed)
    assert len(set(found.tokens)) > 5


def test_prompts_of_one_token_need_no_prefill() -> None:
    model, _ = load_causal_lm("random:tiny-llama")
    prompt = torch.tensor([[5]])
    found = speculate(model, model, prompt, 9, draft_length=3, rule=Greedy())
    assert list(found.tokens) == greedy(model, prompt, 9)
    assert found.acceptance == 1


class Script(Rule):
    """Accepts as much of each draft as it is told to, at most all; notes how long the drafts were."""

    def __init__(self, accepted: Sequence[int]) -> None:
        self.accepted, self.drafts = list(accepted), list[int]()

    def draw(self, logits: Tensor) -> Tensor:
        return torch.tensor([7])

    def judge(self, verifier: Tensor, drafter: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
        assert len(verifier) == len(drafter) + 1 == len(drafted) + 1
        self.drafts.append(len(drafted))
        return torch.tensor(min(self.accepted.pop(0), len(drafted))), torch.tensor([9])


def scripted(accepted: Sequence[int], tokens: int, *, stop: Sequence[int] = ()) -> tuple[Speculation, list[int]]:
    model, _ = load_causal_lm("random:tiny-llama")
    script = Script(accepted)
    found = speculate(model, model, torch.tensor([[1, 2]]), tokens, draft_length=3, rule=script, stop=stop)
    return found, script.drafts


def test_the_verifiers_tokens_are_counted_apart() -> None:
    """Rounds: 2 of 3 and a correction, 3 of 3 and a bonus, 0 of 3 and a correction, then 2 drafts fit and 1 stays."""
    found, drafts = scripted([2, 3, 0, 1, 0], 11)
    assert found.tokens == (7, 7, 9, 7, 7, 7, 9, 9, 7, 9, 9)
    assert drafts == [3, 3, 3, 2, 0]
    assert (found.proposed, found.judged, found.accepted) == ((4, 4, 3), (4, 3, 2), (3, 2, 1))
    assert found.verifier_tokens == len(found.rounds) == 5
    assert found.acceptance == 6 / 11
    assert found.alpha == 6 / 9
    assert found.acceptance_by_position == (3 / 4, 2 / 4, 1 / 3)
    assert found.tokens_per_round == 11 / 5


@pytest.mark.parametrize(("tokens", "drafts"), [(1, [0]), (2, [1]), (3, [2]), (4, [3]), (5, [3, 0]), (6, [3, 1])])
def test_nothing_is_drafted_that_could_not_be_written(tokens: int, drafts: list[int]) -> None:
    found, seen = scripted([3, 3], tokens)
    assert len(found.tokens) == tokens
    assert seen == drafts


def test_a_text_ends_where_it_is_told_to() -> None:
    by_draft, _ = scripted([2, 0], 9, stop=[7])
    assert by_draft.tokens == (7,)
    assert (by_draft.proposed, by_draft.judged, by_draft.accepted) == ((1, 1, 1), (1, 0, 0), (1, 0, 0))
    assert by_draft.verifier_tokens == 0
    by_verifier, _ = scripted([2, 0], 9, stop=[9])
    assert by_verifier.tokens == (7, 7, 9)
    assert by_verifier.judged == (1, 1, 1)
    assert by_verifier.verifier_tokens == 1


def test_without_drafts_there_is_no_acceptance() -> None:
    found, _ = scripted([0], 1)
    assert found.proposed == (0, 0, 0)
    assert found.acceptance is found.alpha is found.cost_ratio is found.predicted_speed_up is None
    assert found.acceptance_by_position == (None, None, None)


def test_seconds_and_the_speed_up_they_predict() -> None:
    rounds = (Round(3, 2, 3, 0.3, 1.0), Round(1, 1, 2, 0.1, 1.0))
    found = Speculation((1, 2, 3, 4, 5), 3, 0.5, rounds)
    assert (found.draft_s, found.verify_s) == (0.4, 2.0)
    assert found.cost_ratio == pytest.approx(0.1)
    assert found.alpha == 3 / 4
    assert found.predicted_speed_up == pytest.approx((1 - 0.75**4) / ((1 - 0.75) * (3 * 0.1 + 1)))


def test_pooled_texts_add_up() -> None:
    first, _ = scripted([2, 3], 7)
    second, _ = scripted([0, 1], 3)
    whole = pooled([first, second])
    assert whole.tokens == first.tokens + second.tokens
    assert whole.accepted == tuple(a + b for a, b in zip(first.accepted, second.accepted, strict=True))
    assert whole.draft_s == pytest.approx(first.draft_s + second.draft_s)


@pytest.mark.parametrize("gamma", [1, 3, 8])
@pytest.mark.parametrize("cost", [0.0, 0.25, 1.5])
def test_speed_up_by_hand(gamma: int, cost: float) -> None:
    assert predicted_speed_up(1.0, gamma, cost) == (gamma + 1) / (gamma * cost + 1)
    assert predicted_speed_up(0.0, gamma, cost) == 1 / (gamma * cost + 1)
    for alpha in (0.3, 0.9):
        formula = (1 - alpha ** (gamma + 1)) / ((1 - alpha) * (gamma * cost + 1))
        assert predicted_speed_up(alpha, gamma, cost) == pytest.approx(formula, rel=1e-12)
    assert predicted_speed_up(1 - 1e-12, gamma, cost) == pytest.approx(predicted_speed_up(1.0, gamma, cost), rel=1e-9)


def test_the_bench_times_it_and_its_counts_are_kept(world: Any, prompts: list[Tensor]) -> None:
    drafter = compressed(world[0], 16)
    subject = SpeculativeDecoding("spec", world[0], drafter, prompts[0], draft_length=GAMMA, rule=Greedy())
    timings = [subject.run(TOKENS) for _ in range(2)]
    assert [run.tokens for run in subject.runs] == [tuple(greedy(world[0], prompts[0], TOKENS))] * 2
    for timing, run in zip(timings, subject.runs, strict=True):
        assert (timing.tokens, len(timing.latencies_s)) == (TOKENS, TOKENS)
        assert timing.decode_s == pytest.approx(run.draft_s + run.verify_s)
        assert timing.prefill_s == run.prefill_s


def test_the_models_are_as_they_were(world: Any, prompts: list[Tensor]) -> None:
    model, before = world[0], {name: value.clone() for name, value in world[0].state_dict().items()}
    speculate(model, model, prompts[0], TOKENS, draft_length=GAMMA, rule=Greedy())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_seed_samples_one_text(world: Any, prompts: list[Tensor]) -> None:
    def text(seed: int) -> tuple[int, ...]:
        rule = Sampling(2.0, torch.Generator().manual_seed(seed))
        return speculate(world[0], world[0], prompts[0], TOKENS, draft_length=GAMMA, rule=rule).tokens

    assert text(0) == text(0)
    assert text(0) != text(1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "draft": (dict(draft_length=0), r"a draft has no tokens; got 0; valid: a draft length of 1 or more"),
    "tokens": (dict(tokens=0), r"there is nothing to write; got 0; valid: 1 token or more"),
    "rows": (dict(prompt=torch.ones(2, 3, dtype=torch.long)), r"one text at a time; got \[2, 3\]"),
    "empty": (dict(prompt=torch.ones(1, 0, dtype=torch.long)), r"a prompt has no tokens; got \[1, 0\]"),
    "context": (dict(tokens=1030), r"longer than the model's context; got 1033; valid: up to 1024"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(name: str) -> None:
    changed, words = REFUSED[name]
    model, _ = load_causal_lm("random:tiny-llama")
    asked: dict[str, Any] = dict(prompt=torch.ones(1, 3, dtype=torch.long), tokens=4, draft_length=2, rule=Greedy())
    with pytest.raises(UsageError, match=words):
        speculate(model, model, **(asked | changed))


def test_models_that_do_not_speak_to_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, _ = load_causal_lm("random:tiny-llama")
    drafter, _ = load_causal_lm("random:planted")
    prompt = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ModelError, match=r"two vocabularies; got \[704, 64\]"):
        speculate(verifier, drafter, prompt, 4, draft_length=2, rule=Greedy())
    elsewhere = copy.deepcopy(verifier).to("meta")
    with pytest.raises(ModelError, match=r"two devices; got \['cpu', 'meta'\]"):
        speculate(verifier, elsewhere, prompt, 4, draft_length=2, rule=Greedy())
