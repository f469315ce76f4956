from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from nullarm.bench.decoding import GreedyDecoding, Slowed
from nullarm.bench.stopwatch import HostStopwatch
from nullarm.bench.subjects import Subject, Timing
from nullarm.errors import ModelError, UsageError
from nullarm.models.load import load_causal_lm
from nullarm.models.shapes import SHAPES

TOKENS = 24
"""With the prompts here, past the sliding windows of the tiny models (16)."""
CLASSES = sorted(name for name in SHAPES if name.startswith("tiny-"))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def loaded(ref: str) -> Any:
    """The model, without an end of text, where `generate` would stop, and with a head of its own.

    Tied to the embedding, a random model repeats one token for ever, whatever its cache holds.
    """
    model, _ = load_causal_lm(ref)
    model.generation_config.eos_token_id = None
    head, generator = model.get_output_embeddings(), torch.Generator().manual_seed(0)
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator))
    return model


def prompt_ids(rows: int, length: int) -> Tensor:
    return torch.randint(1, 700, (rows, length), generator=torch.Generator().manual_seed(0))


def generated(model: Any, prompt: Tensor, tokens: int) -> Tensor:
    whole: Tensor = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return whole[:, prompt.shape[1] :]


@pytest.mark.parametrize("name", CLASSES)
def test_tokens_equal_those_of_generate_run_after_run(name: str) -> None:
    model, prompt = loaded(f"random:{name}"), prompt_ids(1, 6)
    subject = GreedyDecoding("baseline", model, prompt, most=TOKENS)
    expected = generated(model, prompt, TOKENS)
    assert len(set(expected[0].tolist())) > 5
    for tokens in (TOKENS, 5, TOKENS):
        timing = subject.run(tokens)
        assert subject.written.tolist() == expected[:, :tokens].tolist()
        assert (timing.tokens, len(timing.latencies_s)) == (tokens, tokens)


@pytest.mark.parametrize("length", [1, 30], ids=["one token", "longer than the window"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-mistral"])
def test_prompts_of_any_length(name: str, length: int) -> None:
    model, prompt = loaded(f"random:{name}"), prompt_ids(1, length)
    subject = GreedyDecoding("baseline", model, prompt, most=TOKENS)
    subject.run(TOKENS)
    assert subject.written.tolist() == generated(model, prompt, TOKENS).tolist()


def test_the_built_in_model_writes_what_it_writes_in_generate() -> None:
    model, tokenizer = load_causal_lm("builtin:world")
    model.generation_config.eos_token_id = None
    for text in ("What is 3 + 4? Answer:", " cat dog. box lamp. key map. cat dog."):
        prompt = tokenizer(text, return_tensors="pt").input_ids
        subject = GreedyDecoding("world", model, prompt, most=TOKENS)
        subject.run(TOKENS)
        assert subject.written.tolist() == generated(model, prompt, TOKENS).tolist()


def test_a_batch_writes_a_token_in_every_row_at_each_step() -> None:
    model, prompt = loaded("random:tiny-llama"), prompt_ids(3, 6)
    subject = GreedyDecoding("batch", model, prompt, most=TOKENS)
    timing = subject.run(TOKENS)
    assert subject.written.tolist() == generated(model, prompt, TOKENS).tolist()
    assert (timing.tokens, len(timing.latencies_s)) == (3 * TOKENS, TOKENS)


def test_a_class_without_static_cache_has_a_dynamic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = loaded("random:tiny-gemma2"), prompt_ids(1, 6)
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    subject = GreedyDecoding("baseline", model, prompt, most=TOKENS)
    assert subject._cache is None
    for _ in range(2):
        subject.run(TOKENS)
        assert subject.written.tolist() == generated(model, prompt, TOKENS).tolist()


def test_a_static_cache_is_made_once_and_holds_what_is_needed() -> None:
    subject = GreedyDecoding("baseline", loaded("random:tiny-llama"), prompt_ids(1, 6), most=TOKENS)
    layer: Any = subject._cache.layers[0]  # type: ignore[union-attr]
    before = layer.keys.data_ptr()
    subject.run(TOKENS)
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape[2] == 6 + TOKENS - 1 == int(layer.cumulative_length)


def test_decoding_leaves_no_gradients() -> None:
    subject = GreedyDecoding("baseline", loaded("random:tiny-llama"), prompt_ids(1, 6), most=4)
    layer: Any = subject._cache.layers[0]  # type: ignore[union-attr]
    assert not layer.keys.requires_grad


def test_rates_are_of_decoding_only() -> None:
    timing = Timing(prefill_s=100.0, latencies_s=(0.25, 0.25, 0.5), tokens=6)
    assert timing.decode_s == 1.0
    assert timing.tokens_per_s == 6.0


def test_intervals_lie_between_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1_000_000_000, 3_000_000_000, 3_500_000_000])
    monkeypatch.setattr("nullarm.bench.decoding.time.perf_counter_ns", lambda: next(moments))
    watch = HostStopwatch()
    for _ in range(3):
        watch.mark()
    assert watch.intervals_s() == [2.0, 0.5]


@pytest.mark.parametrize("tokens", [0, 5])
def test_more_tokens_than_were_made_room_for_are_refused(tokens: int) -> None:
    subject = GreedyDecoding("baseline", loaded("random:tiny-llama"), prompt_ids(1, 6), most=4)
    with pytest.raises(UsageError, match=rf"baseline cannot write so many tokens; got {tokens}; valid: 1 to 4"):
        subject.run(tokens)


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = loaded("random:tiny-gpt2")
    with pytest.raises(UsageError, match=r"longer than the model's context; got 1025; valid: up to 1024"):
        GreedyDecoding("baseline", model, prompt_ids(1, 1000), most=25)
    with pytest.raises(UsageError, match=r"a prompt has no tokens; got \[1, 0\]"):
        GreedyDecoding("baseline", model, prompt_ids(1, 0), most=25)


def test_compiling_without_a_gpu_is_an_error_and_no_silence() -> None:
    with pytest.raises(UsageError, match="compiled for CUDA devices only; got 'cpu'; valid: compile: false"):
        GreedyDecoding("baseline", loaded("random:tiny-llama"), prompt_ids(1, 6), most=4, compile=True)


def test_a_compiled_step_is_one_graph_made_before_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo and no compiler behind it: what is traced on a CPU is what a GPU would compile."""
    graphs: list[Any] = []

    def backend(graph: Any, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model, prompt = loaded("random:tiny-llama"), prompt_ids(1, 6)
    traced = torch.compile(model, fullgraph=True, backend=backend)
    monkeypatch.setattr("nullarm.bench.decoding._compiled", lambda model: traced)
    subject = GreedyDecoding("compiled", model, prompt, most=TOKENS, compile=True)
    assert len(graphs) == 1
    for _ in range(2):
        subject.run(TOKENS)
        assert subject.written.tolist() == generated(model, prompt, TOKENS).tolist()
    assert len(graphs) == 1


def test_a_step_that_cannot_be_compiled_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dynamo raises on a graph break: made here without a compiler, since those for CUDA are not everywhere."""

    def broken(**_: Any) -> None:
        raise RuntimeError("Graph break:\n data dependent")

    monkeypatch.setattr("nullarm.bench.decoding._compiled", lambda model: broken)
    with pytest.raises(ModelError, match="cannot be compiled: Graph break: data dependent; got 'LlamaForCausalLM'"):
        GreedyDecoding("baseline", loaded("random:tiny-llama"), prompt_ids(1, 6), most=4, compile=True)


@dataclass
class Clock:
    """Moves on by a nanosecond whenever it is read."""

    now: int = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@dataclass
class Even(Subject):
    """Takes given times, and says how often it ran."""

    latencies_s: tuple[float, ...]
    name: str = "even"
    asked: list[int] = field(default_factory=list)

    def run(self, tokens: int) -> Timing:
        self.asked.append(tokens)
        return Timing(0.5, self.latencies_s, tokens)


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_a_slowed_subject_takes_its_share_longer_in_every_token(share: float) -> None:
    latencies = (1e-5, 2e-5, 3e-5)
    clock, subject = Clock(), Even(latencies)
    slowed = Slowed(subject, share, clock)
    timing = slowed.run(3)
    assert subject.asked == [3]
    assert (timing.prefill_s, timing.tokens) == (0.5, 3)
    for slow, plain in zip(timing.latencies_s, latencies, strict=True):
        assert slow == pytest.approx((1 + share) * plain, abs=2e-9)  # two readings of the clock
    assert clock.now / 1e9 >= share * sum(latencies)  # it has passed, and was not only added
    assert slowed.name == f"even, slowed by {share:g}"


@pytest.mark.parametrize("share", [-0.05, float("nan")])
def test_a_subject_cannot_be_sped_up(share: float) -> None:
    with pytest.raises(UsageError, match="negative share"):
        Slowed(Even((1.0,)), share)
