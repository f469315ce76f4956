"""Statistics of inputs are those of all tokens at once, however they came, and the model is left alone."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from low_rank_inputs import streamed, world_batches
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from nullarm.errors import DatasetError, ModelError
from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.calibration import statistics
from nullarm.protocols.low_rank.calibration.collect import collect, hidden_variance
from nullarm.protocols.low_rank.slots import INPUTS, linear

NAMES = sorted(set(INPUTS.values()))


@pytest.fixture(scope="module")
def world() -> tuple[Any, list[Tensor]]:
    model, tokenizer = load_causal_lm("builtin:world")
    return model, world_batches(tokenizer, 2000)


def heard(model: Any, batches: list[Tensor], layer: int, slot: str) -> Tensor:
    """All inputs `[tokens, in]` of one matrix, float64."""
    found: list[Tensor] = []
    hook = linear(model, layer, slot).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].double()))
    with hook, torch.no_grad():
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    return torch.cat([part.flatten(0, 1) for part in found])


def layer_of(width: int, out: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(width, out, dtype=dtype)


@pytest.mark.parametrize("slot", INPUTS)
def test_statistics_are_those_of_all_inputs_of_the_slot(world: tuple[Any, list[Tensor]], slot: str) -> None:
    model, batches = world
    found = collect(model, batches, layers=[0, 2], inputs=NAMES)
    assert found.keys() == {(layer, name) for layer in (0, 2) for name in NAMES}
    for layer in (0, 2):
        x, ours = heard(model, batches, layer, slot), found[layer, INPUTS[slot]]
        assert ours.tokens == len(x) == sum(ids.numel() for ids in batches)
        assert ours.gram is not None
        assert ours.gram.dtype == torch.float64
        assert_close(ours.gram, x.T @ x, rtol=1e-5, atol=1e-6 * float((x.T @ x).abs().max()))
        assert_close(ours.mean_abs, x.abs().mean(0), rtol=1e-6, atol=1e-9)
        places = torch.linspace(0, len(x) - 1, 1024, dtype=torch.float64).round().long()
        assert_close(ours.sample, x[places].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [8192, 16])
def test_it_does_not_matter_how_the_tokens_come(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(statistics, "LARGEST_GRAM", limit)
    monkeypatch.setattr(statistics, "SAMPLE", 50)
    layer, x = layer_of(40, 24), torch.randn(6, 37, 40, generator=torch.Generator().manual_seed(3))
    whole = streamed(layer, x)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    for parts in ([x], [x[:1], x[1:5], x[5:]], list(torch.split(x.flatten(0, 1), 1))):
        ours = streamed(layer, *parts)
        for field in fields(ours):
            assert_close(getattr(ours, field.name), getattr(whole, field.name), rtol=1e-5, atol=1e-4)
        assert torch.equal(ours.sample, whole.sample)


def test_few_tokens_are_all_in_the_sample() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(streamed(layer_of(5, 5), x).sample, x)


def test_a_wide_input_is_never_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFN-down: [out, out] in the place of [in, in]."""
    monkeypatch.setattr(statistics, "LARGEST_GRAM", 100)
    layer, x = layer_of(300, 20, torch.bfloat16), torch.randn(64, 300, generator=torch.Generator().manual_seed(3))
    sizes: list[int] = []
    with Sizes(sizes):
        found = streamed(layer, x.bfloat16())
    assert found.gram is None
    assert found.output_gram is not None
    outputs = x.bfloat16().double() @ layer.weight.detach().double().T  # without the bias
    assert_close(found.output_gram, outputs.T @ outputs, rtol=1e-4, atol=1e-3)
    assert max(sizes) == 64 * 300 < 300 * 300


@pytest.mark.parametrize(("width", "out", "squared"), [(100, 20, True), (101, 20, False), (101, 101, True)])
def test_the_input_is_squared_where_that_is_small(
    monkeypatch: pytest.MonkeyPatch, width: int, out: int, squared: bool
) -> None:
    monkeypatch.setattr(statistics, "LARGEST_GRAM", 100)
    found = streamed(layer_of(width, out), torch.ones(3, width))
    assert (found.gram is not None) == squared
    assert (found.output_gram is None) == squared


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers every tensor has that is made within."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes = sizes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.sizes += [
            part.numel() for part in (made if isinstance(made, list | tuple) else [made]) if isinstance(part, Tensor)
        ]
        return made


def test_variance_of_what_blocks_give_out(world: tuple[Any, list[Tensor]]) -> None:
    model, batches = world
    with torch.no_grad():
        states = [model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states for ids in batches]
    found = hidden_variance(model, batches)
    assert found.shape == (3,)
    for layer in (0, 1):  # the library norms the last one
        wanted = torch.cat([state[layer + 1].double().flatten() for state in states]).var(correction=0)
        assert_close(found[layer], wanted, rtol=1e-6, atol=0)
    assert found[2] > found[0]


@pytest.mark.parametrize("shape", ["random:tiny-gemma3", "random:tiny-qwen3", "random:tiny-llama"])
def test_other_families_are_heard(shape: str) -> None:
    model, _ = load_causal_lm(shape)
    ids = torch.arange(3, 43).view(2, 20)
    found = collect(model, [ids], layers=[1], inputs=["heads", "neurons"])
    x = heard(model, [ids], 1, "o")
    assert_close(found[1, "heads"].gram, x.T @ x, rtol=1e-5, atol=1e-5)
    assert hidden_variance(model, [ids]).isfinite().all()


def state(model: Any) -> tuple[dict[str, Tensor], list[Any], list[set[str]]]:
    """Weights, hooks and attributes."""
    modules = list(model.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    return copy.deepcopy(model.state_dict()), hooks, [set(vars(m)) for m in modules]


@pytest.mark.parametrize("measure", ["collect", "variance"])
@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_as_before(world: tuple[Any, list[Tensor]], measure: str, breaks: bool) -> None:
    model, batches = world
    weights, hooks, attributes = state(model)
    if breaks:
        batches = [*batches[:1], torch.full((1, 4), 10**6)]  # no such token

    def run() -> None:
        if measure == "collect":
            collect(model, batches, layers=[0, 1], inputs=NAMES)
        else:
            hidden_variance(model, batches)

    if breaks:
        with pytest.raises(IndexError):
            run()
    else:
        run()
    after = state(model)
    assert after[1:] == (hooks, attributes)
    assert all(torch.equal(after[0][name], value) for name, value in weights.items())


def test_without_text_there_is_nothing_to_measure(world: tuple[Any, list[Tensor]]) -> None:
    for measure in (lambda: collect(world[0], [], layers=[0], inputs=NAMES), lambda: hidden_variance(world[0], [])):
        with pytest.raises(DatasetError, match="no text to calibrate on; got 0; valid: one window at least"):
            measure()


def test_activations_that_overflow_are_refused(world: tuple[Any, list[Tensor]]) -> None:
    model, batches = copy.deepcopy(world[0]), world[1]
    with torch.no_grad():
        linear(model, 1, "up").weight[3] = torch.inf
    words = r"layer 1 read \(neurons\) is not finite; got '\d+ channels'; valid: a dtype .*bfloat16 or float32"
    with pytest.raises(ModelError, match=words):
        collect(model, batches, layers=[1], inputs=["neurons"])


def test_a_layer_that_is_not_there_is_refused(world: tuple[Any, list[Tensor]]) -> None:
    with pytest.raises(ModelError, match="no such layer; got 3; valid: 0 to 2"):
        collect(world[0], world[1], layers=[3], inputs=NAMES)
