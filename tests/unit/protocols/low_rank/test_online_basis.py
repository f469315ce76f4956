"""Bases adapted on a stream: the arm, its controls, and what they leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import pytest
import torch
from low_rank_inputs import statistics_of, uneven_inputs
from torch import Tensor

from nullarm.errors import DatasetError, ModelError
from nullarm.models.instantiate import instantiate
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors
from nullarm.protocols.low_rank.factored.install import replaced
from nullarm.protocols.low_rank.gauge import gauged_factors
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.rounding import round_to_nearest
from nullarm.protocols.low_rank.methods.settings import Asvd, Grc, LowRank, SvdLlm, WhitenedGrc
from nullarm.protocols.low_rank.online.adapt import adapt
from nullarm.protocols.low_rank.online.drift import drifts
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.protocols.low_rank.slots import linear

QKV, RANK = ("q", "k", "v"), 12
BATCHES = list(torch.randint(704, (6, 8, 16), generator=torch.Generator().manual_seed(0)))
DIRECTIONS = get_args(OnlineSettings.model_fields["direction"].annotation)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return instantiate("tiny-llama", seed=0, device="cpu").to(getattr(torch, request.param))


@pytest.fixture(scope="module")
def single() -> Any:
    return instantiate("tiny-llama", seed=0, device="cpu")


def weights(model: Any, layer: int, slots: tuple[str, ...] = QKV) -> list[Tensor]:
    return [linear(model, layer, slot).weight for slot in slots]


def compressed(model: Any, method: LowRank = Grc(), slots: tuple[str, ...] = QKV) -> Compressed:  # noqa: B008
    inputs = statistics_of(uneven_inputs(32, 200))
    made: Compressed = {}
    for layer in range(2):
        matrices = weights(model, layer, slots)
        basis, factors = decompose(method, matrices, inputs).truncate(RANK)
        dtype = matrices[0].dtype
        made[layer, slots] = Factors(slots, basis.to(dtype), tuple(f.to(dtype) for f in factors))
    return made


def run(model: Any, before: Compressed, direction: str = "difference", seed: int = 0, **more: Any) -> Any:
    settings = OnlineSettings(**{"direction": direction, "block_tokens": 64, "blocks": 12, **more})
    return adapt(model, before, BATCHES, settings, torch.Generator().manual_seed(seed))


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.basis, b.basis) and all(map(torch.equal, a.weights, b.weights))


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    def state() -> list[Any]:
        modules = dict(model.named_modules())
        return [
            {name: id(module) for name, module in modules.items()},
            {name: {k: repr(v) for k, v in vars(module).items() if "hook" in k} for name, module in modules.items()},
            {name: (id(t), t.detach().float().numpy().tobytes()) for name, t in model.named_parameters()},
        ]

    before = state()
    yield
    assert state() == before


def test_the_arm_moves_what_drifts(model: Any) -> None:
    before = compressed(model)
    after, history = run(model, before)
    assert same(after[0, QKV], before[0, QKV]), "nothing before layer 0 is compressed: it has no drift"
    assert not same(after[1, QKV], before[1, QKV])
    last = {row["layer"]: row for row in history}
    assert (last[0]["drift"], last[0]["turned"]) == (0.0, pytest.approx(0, abs=1e-2))
    assert last[1]["drift"] > 0.01
    assert last[1]["turned"] > 0.1


@pytest.mark.parametrize("direction", ["difference", "random", "offline_refit"])
def test_the_factors_are_the_projection_on_an_orthonormal_basis(model: Any, direction: str) -> None:
    after, _ = run(model, compressed(model), direction)
    dtype = next(model.parameters()).dtype
    close = 1e-5 if dtype == torch.float32 else 0.05
    for (layer, _), factors in after.items():
        assert isinstance(factors, Factors)
        assert {factors.basis.dtype, *(w.dtype for w in factors.weights)} == {dtype}
        basis = factors.basis.float()
        torch.testing.assert_close(basis @ basis.T, torch.eye(RANK), rtol=close, atol=close)
        for weight, factor in zip(weights(model, layer), factors.weights, strict=True):
            torch.testing.assert_close(factor.float(), weight.float() @ basis.T, rtol=close, atol=close)


def test_frozen_gives_back_the_very_factors(model: Any) -> None:
    before = compressed(model)
    after, history = run(model, before, "frozen")
    assert all(after[key] is before[key] for key in before)
    assert history[-1]["drift"] > 0.01, "it still measures"


def test_the_basis_turns_to_the_drift_and_random_directions_do_not(single: Any) -> None:
    """Share of the drift, of the model at the start, that a basis has in its span."""
    before = compressed(single)
    found = {key: drift for key, drift, _ in drifts(single, before, torch.cat(BATCHES))}[1, QKV]

    def share(factors: Any) -> float:
        return float((found @ factors.basis.T).norm() / found.norm())

    shares = {direction: share(run(single, before, direction)[0][1, QKV]) for direction in DIRECTIONS}
    assert shares["offline_refit"] > shares["difference"] > shares["frozen"] + 0.05
    assert shares["random"] < shares["difference"] - 0.05


def test_refit_is_the_top_of_the_whole_streams_drift(single: Any) -> None:
    before = compressed(single)
    after, history = run(single, before, "offline_refit")
    found = {key: drift for key, drift, _ in drifts(single, before, torch.cat(BATCHES))}[1, QKV]
    best = torch.linalg.svdvals(found)[:RANK].square().sum()
    assert float((found @ after[1, QKV].basis.T).square().sum() / best) == pytest.approx(1, abs=1e-4)
    turns = [row["turned"] for row in history if row["layer"] == 1]
    assert max(turns[:-1]) < 1e-5
    assert turns[-1] > 0.1


def test_random_directions_come_from_the_generator(single: Any) -> None:
    before = compressed(single)
    first, again, other = (run(single, before, "random", seed)[0][1, QKV] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_other_directions_do_not_look_at_the_generator(single: Any) -> None:
    first, other = (run(single, compressed(single), seed=seed)[0][1, QKV] for seed in (0, 1))
    assert same(first, other)


def test_the_drift_is_that_of_the_two_models(single: Any) -> None:
    before, ids = compressed(single), BATCHES[0]
    seen: list[Tensor] = []

    def look(module: Any, args: Any, output: Tensor) -> None:
        seen.append(output)

    with single.model.layers[1].input_layernorm.register_forward_hook(look), torch.no_grad():
        single(ids)
        with replaced(single, before):
            single(ids)
    (_, first, _), (_, second, norm) = drifts(single, before, ids)
    assert not first.any()
    torch.testing.assert_close(second, (seen[1] - seen[0]).flatten(0, 1))
    torch.testing.assert_close(norm, seen[0].norm())


def test_later_blocks_see_what_earlier_ones_did(single: Any) -> None:
    """One block again and again: the drift of layer 1 stays as it is until a basis before it moves."""
    mlp: Compressed = compressed(single, Grc(), ("gate", "up"))
    made = {**compressed(single), (0, ("gate", "up")): mlp[0, ("gate", "up")]}
    found = {}
    directions: tuple[Literal["frozen", "difference"], ...] = ("frozen", "difference")
    for direction in directions:
        settings = OnlineSettings(direction=direction, block_tokens=64, blocks=3)
        _, history = adapt(single, made, [BATCHES[0][:4]] * 3, settings, torch.Generator())
        found[direction] = [row["drift"] for row in history if row["layer"] == 1]
    assert len(set(found["frozen"])) == 1
    assert len(set(found["difference"])) == 3
    assert found["difference"][0] == found["frozen"][0]


def test_the_rate_falls_with_the_block_and_history_has_a_row_for_each_group(single: Any) -> None:
    _, history = run(single, compressed(single), c=0.5, blocks=3)
    assert [(row["block"], row["layer"], row["slots"]) for row in history] == [
        (block, layer, "q+k+v") for block in (1, 2, 3) for layer in (0, 1)
    ]
    assert [row["rate"] for row in history[::2]] == [0.5, 0.25, 0.5 / 3]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_model_is_as_before(single: Any, direction: str) -> None:
    with untouched(single):
        run(single, compressed(single), direction)


@pytest.mark.parametrize("last_call", [1, 2], ids=["original", "compressed"])
def test_the_model_is_as_before_after_an_exception(single: Any, last_call: int) -> None:
    calls: list[Any] = []

    def fail(module: Any, args: Any) -> None:
        calls.append(args)
        if len(calls) == last_call:
            raise RuntimeError("stopped in the last block")

    with single.model.layers[1].register_forward_pre_hook(fail), untouched(single):
        with pytest.raises(RuntimeError, match="in the last block"):
            run(single, compressed(single))
        assert len(calls) == last_call


def test_a_stream_that_is_too_short_is_refused(single: Any) -> None:
    with pytest.raises(DatasetError, match=r"too few blocks of 64 tokens; got 12; valid: at least online.blocks, 13"):
        run(single, compressed(single), blocks=13)


@pytest.mark.parametrize("method", [Asvd(), SvdLlm(), WhitenedGrc()])
def test_other_methods_are_refused(single: Any, method: LowRank) -> None:
    with pytest.raises(ModelError, match=r"layer 0 q\+k\+v has no basis to adapt.*valid: method grc without a gauge"):
        run(single, compressed(single, method))


def test_rounded_matrices_are_refused(single: Any) -> None:
    rounded: Compressed = {(1, ("q",)): round_to_nearest(weights(single, 1)[0], 8, 16, slot="q")}
    with pytest.raises(ModelError, match=r"layer 1 q has no basis to adapt.*got 'rounded'"):
        run(single, rounded)


def test_a_gauge_is_refused_and_its_control_is_not(single: Any) -> None:
    def gauged(g: Tensor) -> Compressed:
        return {(1, QKV): Factors(QKV, *gauged_factors(Grc(), weights(single, 1), RANK, "reader", g))}

    run(single, gauged(torch.ones(32)), blocks=1)
    with pytest.raises(ModelError, match="factors that are weighed or gauged"):
        run(single, gauged(torch.linspace(0.8, 1.25, 32)), blocks=1)


def test_the_basis_of_one_matrix_is_adapted_too(single: Any) -> None:
    after, _ = run(single, compressed(single, Grc(), ("k",)))
    assert not same(after[1, ("k",)], compressed(single, Grc(), ("k",))[1, ("k",)])
