from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from factored_models import MODELS, factored, ids, loaded, mixed, rounded, truncated
from torch import Tensor, nn
from torch.nn import functional as F

from nullarm.errors import ModelError
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors, Rounded
from nullarm.protocols.low_rank.factored.install import install, replaced, weight_bytes
from nullarm.protocols.low_rank.factored.linear import FactoredLinear, RoundedLinear
from nullarm.protocols.low_rank.factored.shared import SharedBasis, SharedLinear
from nullarm.protocols.low_rank.slots import MODULES, SLOTS, Group, linear, place

REF = "random:tiny-qwen2"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
RANK = 5


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> Any:
    return loaded(REF)


@pytest.fixture
def attention(model: Any) -> Any:
    """Attention of layer 0 with q, k and v over one basis, with biases."""
    install(model, factored(model, REF, rank=RANK, slots=("q", "k", "v")))
    return model.model.layers[0].self_attn


def x(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, generator=torch.Generator().manual_seed(seed))


def alone(attention: Any, name: str, x: Tensor) -> Tensor:
    """A slot's output from the formula."""
    module = getattr(attention, name)
    shared, rows = module.shared, module.shared.rows(module.index)
    expected: Tensor = x @ shared.basis.T @ shared.weight[rows].T + shared.bias[rows]
    return expected


def right(attention: Any, name: str, x: Tensor) -> bool:
    return torch.allclose(getattr(attention, name)(x), alone(attention, name, x), atol=1e-5)


class Products:
    """Counts the matrix products of `F.linear` while it is entered."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.count = patch, 0

    def __enter__(self) -> Products:
        self.patch.setattr(F, "linear", self._linear(F.linear))
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def _linear(self, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: Any) -> Tensor:
            self.count += 1
            return linear(*args)

        return counted


@pytest.mark.parametrize("ref", MODELS)
def test_at_full_rank_the_model_says_the_same(ref: str) -> None:
    model = loaded(ref)
    before = model(ids()).logits
    install(model, factored(model, ref))
    assert torch.allclose(model(ids()).logits, before, atol=2e-3 * float(before.abs().max()))


def test_every_slot_computes_its_factors_and_keeps_its_bias(model: Any) -> None:
    made, dense = factored(model, REF, rank=RANK), copy.deepcopy(model)
    install(model, made)
    for (layer, slots), matrices in made.items():
        assert isinstance(matrices, Factors)
        for slot, weight in zip(slots, matrices.weights, strict=True):
            parent, name = place(model, layer, slot)
            given = x()[..., :1].expand(-1, -1, matrices.basis.shape[1])
            expected = F.linear(given, weight @ matrices.basis, linear(dense, layer, slot).bias)
            assert torch.allclose(getattr(parent, name)(given), expected, atol=1e-4)
    assert linear(dense, 0, "q").bias.abs().min() > 0


def test_attention_shares_one_product_and_keeps_nothing(attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = x()
    expected = [alone(attention, name, given) for name in PROJECTIONS]
    with Products(monkeypatch) as products:
        found = [getattr(attention, name)(given) for name in PROJECTIONS]
    assert products.count == 2  # P x, and one for all three
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert attention.q_proj.shared._held is None


def test_the_whole_model_takes_two_products_for_a_group(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(model, factored(model, REF, rank=RANK))
    with Products(monkeypatch) as products:
        model(ids())
    assert products.count == 2 * (2 + 2 + 2 + 2) + 1  # per layer: q k v, o, gate up, down; and the head


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0, 0, 2, 2), (2,), (0, 0, 0), (1, 0, 1, 2)])
def test_slots_may_be_called_in_any_order_and_number(attention: Any, order: tuple[int, ...]) -> None:
    given = x()
    assert all(right(attention, PROJECTIONS[index], given) for index in order)


def test_an_input_changed_in_place_is_computed_anew(attention: Any) -> None:
    given = x()
    attention.q_proj(given)
    given[0] += 1
    assert right(attention, "k_proj", given)
    given.view(-1)[5] = 7
    assert right(attention, "v_proj", given)


def test_another_tensor_in_between_gets_its_own(attention: Any) -> None:
    one, other = x(0), x(1)
    attention.q_proj(one)
    assert right(attention, "k_proj", other)
    assert right(attention, "v_proj", one)
    assert right(attention, "k_proj", one.clone())


def test_weights_changed_in_between_are_seen(attention: Any) -> None:
    given, shared = x(), attention.q_proj.shared
    attention.q_proj(given)
    shared.basis[0] += 1
    assert right(attention, "k_proj", given)
    shared.weight.mul_(2)
    assert right(attention, "v_proj", given)
    attention.q_proj(given)
    shared.bias.data = shared.bias.data + 1
    assert right(attention, "k_proj", given)
    shared.load_state_dict({name: torch.ones_like(tensor) for name, tensor in shared.state_dict().items()})
    assert right(attention, "v_proj", given)


def test_after_an_exception_nothing_stale_is_used_and_nothing_is_kept(attention: Any) -> None:
    def failing() -> None:
        given = x(1)
        attention.q_proj(given)
        raise RuntimeError("between the calls")

    with pytest.raises(RuntimeError, match="between"):
        failing()
    gc.collect()
    assert not attention.q_proj.shared._held.parts, "the product went with its input"
    assert all(right(attention, name, x(2)) for name in ("v_proj", "k_proj", "q_proj"))


def test_a_product_nobody_takes_goes_with_its_input(attention: Any) -> None:
    given = x()
    attention.q_proj(given)
    part = weakref.ref(attention.q_proj.shared._held.parts[1])
    assert part() is not None
    del given
    assert part() is None


def test_with_gradients_each_slot_has_its_own(attention: Any) -> None:
    given = x()
    attention.q_proj(given)
    with torch.enable_grad():
        given.requires_grad_()
        sum(getattr(attention, name)(given).sum() for name in PROJECTIONS).backward()
    shared = attention.q_proj.shared
    assert given.grad is not None
    assert torch.allclose(given.grad, (shared.weight @ shared.basis).sum(0).expand_as(given), atol=1e-4)


def test_inference_mode_which_counts_no_changes_is_right(attention: Any) -> None:
    with torch.inference_mode():
        given = x()
        attention.q_proj(given)
        given += 1
        assert all(right(attention, name, given) for name in ("k_proj", "v_proj"))


def test_compiled_attention_is_one_graph_with_two_products(attention: Any) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def three(given: Tensor) -> list[Tensor]:
        given = given * 2
        return [getattr(attention, name)(given) for name in PROJECTIONS]

    found = torch.compile(three, backend=backend, fullgraph=True)(x())
    assert all(torch.equal(a, b) for a, b in zip(found, three(x()), strict=True))
    assert sum("linear" in str(node.target) for node in graphs[0].graph.nodes) == 2


def test_a_slot_compiled_alone_is_right_at_every_call(attention: Any) -> None:
    compiled: Callable[..., Tensor] = torch.compile(attention.k_proj, backend="eager")
    for given in (x(0), x(1), x(1)):
        assert torch.allclose(compiled(given), alone(attention, "k_proj", given), atol=1e-5)
        assert right(attention, "v_proj", given)


def test_a_copy_shares_within_itself_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(model, factored(model, REF, rank=RANK))
    attention, given = model.model.layers[0].self_attn, x()
    attention.q_proj(given)
    twin = copy.deepcopy(model).model.layers[0].self_attn
    assert twin.q_proj.shared is twin.k_proj.shared is not attention.q_proj.shared
    assert twin.q_proj.shared._held is None
    twin.q_proj.shared.weight.zero_()
    assert torch.equal(twin.k_proj(given), twin.q_proj.shared.bias[32:48].expand(2, 3, -1))
    assert right(attention, "k_proj", given)
    with Products(monkeypatch) as products:
        for name in PROJECTIONS:
            getattr(twin, name)(given)
    assert products.count == 2


def test_each_tensor_is_listed_once_and_loads_again(model: Any) -> None:
    install(model, factored(model, REF, rank=RANK))
    names = [name for name in model.state_dict() if "layers.0.self_attn" in name]
    assert sorted(name.removeprefix("model.layers.0.self_attn.") for name in names) == [
        "o_proj.basis", "o_proj.weight", "q_proj.shared.basis", "q_proj.shared.bias", "q_proj.shared.weight",
    ]  # fmt: skip
    other = loaded("random:tiny-qwen2@7")
    install(other, factored(other, REF, rank=RANK))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids()).logits, model(ids()).logits)


def test_a_change_of_dtype_reaches_every_slot(attention: Any, model: Any) -> None:
    model.to(torch.float64)
    given = x().double()
    assert all(getattr(attention, name)(given).dtype == torch.float64 for name in PROJECTIONS)
    assert all(right(attention, name, given) for name in PROJECTIONS)


def test_factors_take_the_dtype_of_the_model() -> None:
    model = loaded(REF, "bfloat16")
    install(model, mixed(model, REF, RANK))
    floating = {parameter.dtype for parameter in model.parameters()}
    assert floating == {torch.bfloat16}
    assert model(ids()).logits.dtype == torch.bfloat16


def test_generation_with_a_cache_says_what_full_passes_say(model: Any) -> None:
    install(model, factored(model, REF, rank=RANK))
    prompt = ids(batch=1)
    said = model.generate(prompt, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(prompt))
    for _ in range(said.shape[1] - prompt.shape[1]):
        prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(said, prompt)


@pytest.mark.parametrize(("bits", "codes_bytes"), [(8, 32 * 32), (4, 32 * 16)])
def test_rounded_codes_are_as_far_as_half_a_scale(model: Any, bits: int, codes_bytes: int) -> None:
    made, dense = rounded(model, 0, "q", bits=bits, block=16), linear(model, 0, "q")
    assert made.nbytes == codes_bytes + 2 * (32 * 2)
    error = (made.weight(torch.float32) - dense.weight).abs().view(32, 2, 16)
    assert (error <= made.scales.float()[..., None] * 0.51).all()
    assert error.max() > 0
    with replaced(model, {(0, ("q",)): made}):
        layer = model.model.layers[0].self_attn.q_proj
        assert torch.allclose(layer(x()), F.linear(x(), made.weight(torch.float32), dense.bias), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("columns", "block"), [(7, 3), (8, 8), (9, 64), (1, 1), (10, 4)])
def test_codes_of_any_width_come_back(bits: int, columns: int, block: int) -> None:
    largest = 2 ** (bits - 1) - 1
    codes = torch.randint(-largest, largest + 1, (3, columns), dtype=torch.int8)
    scales = torch.rand(3, -(-columns // block)) + 0.1
    made = Rounded.pack("q", codes, scales, bits=bits, block=block)
    spread = scales.half().double().repeat_interleave(block, dim=1)[:, :columns]
    assert torch.equal(made.weight(torch.float64), codes * spread.float().double())
    assert made.codes.nbytes == (3 * columns if bits == 8 else 3 * -(-columns // 2))
    assert made.weight(torch.bfloat16).equal((codes * spread.float()).to(torch.bfloat16))


def test_scales_survive_a_change_of_dtype(model: Any) -> None:
    install(model, {(0, ("q",)): rounded(model, 0, "q", bits=8)})
    layer = model.model.layers[0].self_attn.q_proj
    before = layer(x())
    model.to(torch.bfloat16).to(torch.float32)
    assert torch.allclose(layer(x()) - layer.bias, before - layer.bias, atol=0.02)
    assert weight_bytes(model, ("q",)) == (32 * 32 + 32 * 2) + 4 * 32 * 32  # layer 0 rounded, layer 1 dense in fp32


def test_weight_bytes_counts_what_is_stored(model: Any) -> None:
    assert weight_bytes(model, ("q", "k")) == 4 * 2 * (32 * 32 + 16 * 32)
    with replaced(model, factored(model, REF, rank=RANK)):
        assert weight_bytes(model, ("q", "k", "v")) == 4 * 2 * RANK * (32 + 32 + 16 + 16)
        assert weight_bytes(model, ("k",)) == 4 * 2 * RANK * (32 + 16)
        assert weight_bytes(model, ("down",)) == 4 * 2 * RANK * (64 + 32)
        assert weight_bytes(model.to(torch.bfloat16), ("down",)) == 2 * 2 * RANK * (64 + 32)
    assert factored(loaded(), REF, rank=RANK, slots=("q", "k", "v"))[0, ("q", "k", "v")].nbytes == 4 * RANK * 96


def state(model: Any) -> dict[str, Any]:
    """What must be as before: modules by identity, with attributes and hooks, parameters by identity and value."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: [*module._forward_hooks, *module._forward_pre_hooks] for name, module in model.named_modules()},
        "tensors": {name: (id(p), p._version, p.sum().item()) for name, p in model.named_parameters()},
    }


def test_afterwards_the_model_is_the_one_it_was(model: Any) -> None:
    linear(model, 0, "k").register_forward_hook(lambda *_: None)
    linear(model, 1, "down").register_forward_pre_hook(lambda *_: None)
    model.model.layers[1].self_attn.o_proj.note = "an attribute of somebody's"
    before, logits = state(model), model(ids()).logits
    with replaced(model, mixed(model, REF, RANK)):
        assert state(model) != before
        assert not torch.allclose(model(ids()).logits, logits)
    assert state(model) == before
    assert list(model.model.layers[0].self_attn._modules) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert torch.equal(model(ids()).logits, logits)
    assert linear(model, 1, "o").note == "an attribute of somebody's"


def test_also_after_an_exception(model: Any) -> None:
    before = state(model)
    with pytest.raises(RuntimeError, match="inside"), replaced(model, mixed(model, REF, RANK)):
        raise RuntimeError("inside")
    assert state(model) == before
    made = mixed(model, REF, RANK)
    made[1, ("o",)] = truncated(model, Group(1, ("k",), 32, (16,)), RANK)
    with pytest.raises(ModelError, match="layer 1 has matrices of other slots"), replaced(model, made):
        raise AssertionError("not reached")
    assert state(model) == before


def test_a_biased_original_shares_nothing_with_its_stand_in(model: Any) -> None:
    bias = linear(model, 0, "v").bias.clone()
    with replaced(model, mixed(model, REF, RANK)):
        for module in model.modules():
            if isinstance(module, FactoredLinear | SharedBasis | RoundedLinear):
                for tensor in module.parameters():
                    tensor.zero_()
    assert torch.equal(linear(model, 0, "v").bias, bias)


def test_the_mode_of_the_layer_is_kept(model: Any) -> None:
    install(model, factored(model, REF, rank=RANK))
    assert not any(module.training for module in model.modules())


def misfit(slots: tuple[str, ...], rows: tuple[int, ...], columns: int = 32) -> Factors:
    return Factors(slots, torch.zeros(2, columns), tuple(torch.zeros(n, 2) for n in rows))


@pytest.mark.parametrize(
    ("compressed", "words"),
    [
        (
            {(1, ("q", "k", "v")): misfit(("q", "k", "v"), (32, 17, 16))},
            "layer 1, slot k: the compressed matrix does not fit (out × in); got '17 × 32'; valid: 16 × 32",
        ),
        (
            {(0, ("down",)): misfit(("down",), (32,))},
            "layer 0, slot down: the compressed matrix does not fit (out × in); got '32 × 32'; valid: 32 × 64",
        ),
        (
            {(0, ("up",)): Rounded(("up",), torch.zeros(64, 8), torch.ones(64, 1), bits=4, block=16, shape=(64, 16))},
            "layer 0, slot up: the compressed matrix does not fit (out × in); got '64 × 16'; valid: 64 × 32",
        ),
        (
            {(0, ("q", "gate")): misfit(("q", "gate"), (32, 64))},
            "slots of layer 0 that read different vectors; got ('q', 'gate'); valid: q, k, v",
        ),
        (
            {(0, ("q",)): misfit(("q",), (32,)), (0, ("q", "k", "v")): misfit(("q", "k", "v"), (32, 16, 16))},
            "layer 0, slot q is compressed twice; valid: one group for each slot",
        ),
        (
            {(0, ("k",)): misfit(("v",), (16,))},
            "layer 0 has matrices of other slots; got ('v',); valid: k",
        ),
        (
            {(2, ("k",)): misfit(("k",), (16,))},
            "there is no such layer; got 2; valid: 0 to 1",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_changed(model: Any, compressed: Compressed, words: str) -> None:
    before = state(model)
    with pytest.raises(ModelError) as caught:
        install(model, {(0, ("o",)): misfit(("o",), (32,)), **compressed})
    assert str(caught.value) == words
    assert state(model) == before


def test_a_model_is_not_compressed_twice(model: Any) -> None:
    made = factored(model, REF, rank=RANK)
    install(model, made)
    with pytest.raises(
        ModelError, match="layer 0, slot q is no plain linear layer; got 'SharedLinear'; valid: a model"
    ):
        install(model, made)


def test_what_is_printed_names_shape_and_rank(model: Any) -> None:
    install(model, mixed(model, REF, RANK))
    block = model.model.layers[0]
    assert "in_features=32, out_features=16, rank=5, bias=True" in repr(block.self_attn.k_proj)
    assert "in_features=32, out_features=32, rank=5, bias=False" in repr(block.self_attn.o_proj)
    assert "in_features=64, out_features=32, bits=4, block=32, bias=False" in repr(block.mlp.down_proj)


def test_every_slot_is_replaced(model: Any) -> None:
    install(model, mixed(model, REF, RANK))
    for layer in range(2):
        kinds = {slot: type(model.model.layers[layer].get_submodule(MODULES[slot])) for slot in SLOTS}
        assert kinds == {
            "q": SharedLinear, "k": SharedLinear, "v": SharedLinear, "o": FactoredLinear,
            "gate": FactoredLinear, "up": RoundedLinear, "down": RoundedLinear,
        }  # fmt: skip
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 1  # the head
