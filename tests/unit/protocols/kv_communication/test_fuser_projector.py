from __future__ import annotations

import inspect
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_fusers import RECEIVER, SHARER, kv, projector
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.fuser import C2CProjector
from nullarm.protocols.kv_communication.fuser.projector import open_halves
from nullarm.protocols.kv_communication.geometry import HALVES, Half

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "c2c_projector_state_dict.json").read_text(encoding="utf-8")
)


def golden_shapes(**sizes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, for num_layers = 3."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(GOLDEN["scalars"], ())
    for half in GOLDEN["half"]:
        for pattern, shape in GOLDEN["per_half"].items():
            name = pattern.format(half=half, j=0)
            shapes[name] = tuple(sum(sizes[part] for part in size.split("+")) for size in shape)
    return shapes


def test_names_and_shapes_are_the_published_ones() -> None:
    made = C2CProjector(4, 5, 2, 3, hidden_dim=16, intermediate_dim=24)
    expected = golden_shapes(S=8, T=15, Ht=3, H=16, I=24)
    assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == expected
    assert "gate_temperature" in dict(made.named_buffers())


def test_more_layers_are_more_blocks_of_the_projection_alone() -> None:
    names = C2CProjector(4, 5, 2, 3, hidden_dim=8, intermediate_dim=8, num_layers=5).state_dict().keys()
    added = names - golden_shapes(S=8, T=15, Ht=3, H=8, I=8).keys()
    parts = ("norm", "w1", "w2")
    assert added == {f"{h}_proj_mlp2.blocks.{j}.{part}.weight" for h in HALVES for j in (1, 2) for part in parts}


def test_arguments_and_their_defaults_are_the_published_ones() -> None:
    published = GOLDEN["files"]["projector_{i}.json"]["init_args"]
    assert list(published) == [name for name in inspect.signature(C2CProjector).parameters if name != "zero_init"]
    sizes: dict[str, Any] = {"source_dim": 4, "target_dim": 5, "source_num_heads": 2, "target_num_heads": 3}
    with torch.device("meta"):
        made = C2CProjector(**sizes, dtype="bfloat16")
    assert made.init_args == {**published, **sizes}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_layers": 2}, "num_layers of a projector is unusable; got 2; valid: a whole number from 3"),
        ({"hidden_dim": 0}, "hidden_dim of a projector is unusable; got 0; valid: a whole number from 1"),
        ({"source_dim": 4.0}, "source_dim of a projector is unusable; got 4.0; valid: a whole number from 1"),
        ({"dropout": 1.0}, "dropout of a projector is unusable; got 1.0; valid: from 0 to below 1"),
        ({"final_temperature": 0.0}, "final_temperature of a projector is unusable; got 0.0; valid: a number above 0"),
        ({"initial_temperature": math.nan}, "initial_temperature of a projector is unusable; got nan"),
        ({"dtype": "int8"}, "dtype of a projector is unusable; got 'int8'; valid: float32, bfloat16, float16, float64"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        C2CProjector(**{"source_dim": 4, "target_dim": 5, **wrong})
    assert str(caught.value).startswith(words)


# The formula, once more: per token, in lists of floats, from the state dict alone.


def by_hand(state: dict[str, Tensor], half: Half, source: list[float], target: list[float], heads: int) -> list[float]:
    """target + weight · projection of one token, gate open; the numbers of all heads in a row."""
    part = {name.removeprefix(f"{half}_"): t.tolist() for name, t in state.items() if name.startswith(f"{half}_")}

    def linear(name: str, x: list[float]) -> list[float]:
        bias = part.get(f"{name}.bias", [0.0] * len(part[f"{name}.weight"]))
        rows = zip(part[f"{name}.weight"], bias, strict=True)
        return [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in rows]

    def blocks(name: str, x: list[float]) -> list[float]:
        depth = sum(key.startswith(name) and key.endswith("w1.weight") for key in part)
        for j in range(depth):
            root = math.sqrt(sum(value * value for value in x) / len(x) + 1e-6)
            normed = [w * value / root for w, value in zip(part[f"{name}.blocks.{j}.norm.weight"], x, strict=True)]
            inner = [
                value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in linear(f"{name}.blocks.{j}.w1", normed)
            ]
            x = [a + b for a, b in zip(x, linear(f"{name}.blocks.{j}.w2", inner), strict=True)]
        return x

    x = blocks("mlp1", linear("in", source + target))
    scores = linear("scalar_head", blocks("scalar_mlp2", x))
    projection = linear("proj_out", blocks("proj_mlp2", x))
    width = len(target) // heads
    weights = [1 / (1 + math.exp(-scores[i // width])) for i in range(len(target))]
    return [t + w * p for t, w, p in zip(target, weights, projection, strict=True)]


@pytest.mark.parametrize("num_layers", [3, 4])
def test_output_is_the_formula_token_by_token(num_layers: int) -> None:
    made = projector(num_layers=num_layers, dtype=torch.float64)
    source, target = kv(SHARER, dtype=torch.float64), kv(RECEIVER, seed=2, dtype=torch.float64)
    fused = made(source, target)
    for half, own, into, out in zip(HALVES, source, target, fused, strict=True):
        for b in range(2):
            for n in range(6):
                expected = by_hand(
                    made.state_dict(), half, own[b, :, n].flatten().tolist(), into[b, :, n].flatten().tolist(), 3
                )
                assert out[b, :, n].flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_halves_share_nothing() -> None:
    made, source, target = projector(), kv(SHARER), kv(RECEIVER, seed=2)
    other_key = (source[0] + 1, source[1])
    before, after = made(source, target), made(other_key, target)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_works_in_its_own_dtype_and_returns_the_targets(dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    exact, made = projector(), projector(dtype=dtype)
    source, target = kv(SHARER, dtype=torch.bfloat16), kv(RECEIVER, seed=2, dtype=target_dtype)
    fused = made(source, target)
    reference = exact((source[0].float(), source[1].float()), (target[0].float(), target[1].float()))
    for out, expected in zip(fused, reference, strict=True):
        assert out.dtype == target_dtype
        assert torch.allclose(out.float(), expected, atol=0.05, rtol=0.05)


def test_the_sum_is_rounded_once() -> None:
    """A bf16 projector adds as if in fp32: product and sum of bf16 numbers, then one rounding."""
    made, source = projector(dtype=torch.bfloat16), kv(SHARER, dtype=torch.bfloat16)
    target = kv(RECEIVER, seed=2, dtype=torch.bfloat16)
    precise = made.fuse_half("key", source[0], target[0], onto=target[0].float())
    assert precise.dtype == torch.float32
    assert torch.equal(made(source, target)[0], precise.bfloat16())


def test_norm_works_in_fp32() -> None:
    block = projector(dtype=torch.bfloat16).get_submodule("key_mlp1.blocks.0")
    x = 300 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = block.get_parameter("norm.weight").float()
    normed = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * weight).bfloat16()
    inner = torch.nn.functional.gelu(normed @ block.get_parameter("w1.weight").T)
    assert torch.equal(block(x), x + inner @ block.get_parameter("w2.weight").T)


def test_autocast_warns_of_nothing() -> None:
    made, source, target = projector(), kv(SHARER), kv(RECEIVER, seed=2)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        fused = made(source, target)
    for out, expected in zip(fused, made(source, target), strict=True):
        assert out.dtype == torch.float32
        assert torch.allclose(out, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (kv(RECEIVER), kv(RECEIVER), "the key of the source does not fit this projector; got (2, 3, 6, 5); "
                                     "valid: (2, 2, 6, 4)"),
        (kv(SHARER, tokens=5), kv(RECEIVER), "the key of the source does not fit this projector; got (2, 2, 5, 4)"),
        (kv(SHARER), kv(SHARER), "the key of the target does not fit this projector; got (2, 2, 6, 4); "
                                 "valid: (2, 3, 6, 5)"),
        ((kv(SHARER)[0], None), kv(RECEIVER), "the value of the source does not fit this projector; got 'nothing'"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(source: Any, target: Any, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        projector()(source, target)
    assert str(caught.value).startswith(words)


# Gates


@pytest.mark.parametrize(("logit", "is_open"), [(0.0, False), (-0.1, False), (1e-6, True), (3.0, True)])
def test_in_evaluation_a_gate_is_open_above_zero(logit: float, is_open: bool) -> None:
    assert open_halves([projector(gates=logit)]) == [HALVES if is_open else ()]


def test_a_fresh_projector_is_closed_in_evaluation_and_open_in_training() -> None:
    fresh = C2CProjector(4, 5, 2, 3, hidden_dim=8, intermediate_dim=8)
    assert open_halves([fresh]) == [HALVES]
    assert open_halves([fresh.eval()]) == [()]


def test_closed_halves_are_the_target_itself_and_nothing_is_computed() -> None:
    made, target = projector(gates=0.0), kv(RECEIVER)
    with FlopCounterMode(display=False) as counter:
        key, value = made((None, None), target)
    assert counter.get_total_flops() == 0
    assert key is target[0]
    assert value is target[1]


@pytest.mark.parametrize("half", HALVES)
def test_one_open_half_costs_half(half: Half) -> None:
    made, source, target = projector(), kv(SHARER), kv(RECEIVER)
    with FlopCounterMode(display=False) as both:
        expected = made(source, target)
    closed = HALVES[1 - HALVES.index(half)]
    made.gate_logit(closed).data.fill_(-1)
    with FlopCounterMode(display=False) as one:
        fused = made(source, target)
    assert one.get_total_flops() == both.get_total_flops() / 2 > 0
    assert torch.equal(fused[HALVES.index(half)], expected[HALVES.index(half)])
    assert fused[HALVES.index(closed)] is target[HALVES.index(closed)]


def gates_of(made: C2CProjector, tokens: int) -> Tensor:
    """The gates `[batch, heads, tokens]` that a forward pass in training has used: output changes by gate · open."""
    source, target = kv(SHARER, tokens=tokens), kv(RECEIVER, tokens=tokens, seed=2)
    open_change = made.eval()(source, target)[0] - target[0]
    change = made.train()(source, target)[0] - target[0]
    gates: Tensor = (change * open_change).sum(-1) / open_change.square().sum(-1)
    return gates


def test_training_noise_is_symmetric() -> None:
    """At logit 0 the gate is 1/2 on average; one Gumbel alone would make it 0.63 at τ = 0.001."""
    for temperature in (1.0, 0.001):
        made = projector(gates=0.0, dropout=0.0, initial_temperature=temperature)
        made.gate_logit("key").data.fill_(1e-9)  # open, so that `gates_of` has something to compare with
        torch.manual_seed(0)
        gates = gates_of(made, 4000).flatten()
        error = gates.std() / math.sqrt(len(gates))
        assert abs(gates.mean() - 0.5) < 4 * error
        assert error < 0.01


def test_training_gates_are_logistic_per_batch_head_and_token() -> None:
    """σ((logit + g) / τ) is below ½ with probability σ(−logit), and no two positions share a draw."""
    made = projector(gates=1.0, dropout=0.0)
    torch.manual_seed(0)
    gates = gates_of(made, 2000)
    assert gates.shape == (2, 3, 2000)
    assert len(set(gates.flatten().tolist())) > 0.99 * gates.numel()
    expected = 1 / (1 + math.e)
    error = math.sqrt(expected * (1 - expected) / gates.numel())
    assert abs((gates < 0.5).double().mean() - expected) < 4 * error


def test_training_noise_comes_from_the_global_generator() -> None:
    made, source, target = projector().train(), kv(SHARER), kv(RECEIVER)
    torch.manual_seed(3)
    first, second = made(source, target), made(source, target)
    torch.manual_seed(3)
    again = made(source, target)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])


def test_a_fixed_gate_is_the_same_in_training() -> None:
    made, source, target = projector(dropout=0.0), kv(SHARER), kv(RECEIVER)
    expected = made(source, target)
    for half in HALVES:
        made.gate_logit(half).requires_grad_(False)
    assert torch.equal(made.train()(source, target)[0], expected[0])
    made.gate_logit("key").data.fill_(-1)
    assert open_halves([made]) == [("value",)]
    assert made((None, source[1]), target)[0] is target[0]


def test_every_parameter_is_trained() -> None:
    made = projector(gates=0.0).train()
    torch.manual_seed(0)
    key, value = made(kv(SHARER), kv(RECEIVER))
    (key.square().sum() + value.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


def test_zero_init_is_the_identity_with_open_gates_and_can_be_trained() -> None:
    made = C2CProjector(4, 5, 2, 3, hidden_dim=8, intermediate_dim=8, dropout=0.0, zero_init=True)
    source, target = kv(SHARER), kv(RECEIVER)
    key, value = made.train()(source, target)
    assert torch.equal(key, target[0])
    assert torch.equal(value, target[1])
    key.sum().backward()
    gradient = made.get_parameter("key_proj_out.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


# Annealing


def test_temperature_falls_exponentially_between_its_ends() -> None:
    made = projector(initial_temperature=2.0, final_temperature=0.02, anneal_steps=10)
    found = []
    for step in (0, 5, 10, 1000):
        made.set_step(step)
        found.append(made.gate_temperature.item())
    assert found == pytest.approx([2.0, 0.2, 0.02, 0.02])


def test_temperature_depends_on_the_step_alone() -> None:
    walked, jumped = projector(), projector()
    for step in range(700):
        walked.set_step(step)
    jumped.set_step(699)
    assert torch.equal(walked.gate_temperature, jumped.gate_temperature)
    assert torch.equal(walked.state_dict()["gate_temperature"], jumped.gate_temperature)


def test_a_colder_gate_is_harder() -> None:
    made = projector(gates=1e-9, dropout=0.0)

    def undecided() -> float:
        torch.manual_seed(0)
        gates = gates_of(made, 500)
        return ((gates > 0.05) & (gates < 0.95)).double().mean().item()

    made.set_step(0)
    warm = undecided()
    made.set_step(1929)
    assert undecided() < 0.02 < 0.8 < warm
