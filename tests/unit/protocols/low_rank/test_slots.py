from __future__ import annotations

import pytest
import torch
from factored_models import MODELS, loaded

from nullarm.errors import ModelError, StudyError
from nullarm.models.shapes import SHAPES
from nullarm.protocols.low_rank.slots import INPUTS, MODULES, SLOTS, Group, groups, linear, place

QKV = Group(layer=0, slots=("q", "k", "v"), in_features=4096, out_features=(4096, 1024, 1024))


def test_break_even_is_that_of_the_source_at_the_shape_of_llama_8b() -> None:
    ref = "random:llama-3.1-8b"
    alone = {group.slots[0]: group for group in groups(ref, SLOTS, shared=False)[:7]}
    assert {slot: group.break_even for slot, group in alone.items()} == {
        "q": 2048, "k": 819, "v": 819, "o": 2048, "gate": 3185, "up": 3185, "down": 3185,
    }  # fmt: skip
    assert groups(ref, ("q", "k", "v"), shared=True)[0] == QKV
    assert QKV.break_even == 2457


def test_factors_hold_no_more_than_the_matrices_up_to_break_even() -> None:
    assert QKV.factored_numbers(QKV.break_even) <= QKV.dense_numbers < QKV.factored_numbers(QKV.break_even + 1)
    assert QKV.dense_numbers == 4096 * (4096 + 1024 + 1024)
    assert QKV.max_rank == 4096
    assert Group(0, ("down",), 14336, (4096,)).max_rank == 4096


def test_groups_come_layer_by_layer_in_the_order_of_slots() -> None:
    found = groups("random:tiny-llama", SLOTS[::-1], shared=True)
    assert [(g.layer, g.slots) for g in found] == [
        (layer, slots) for layer in (0, 1) for slots in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
    ]
    found = groups("random:tiny-llama", SLOTS, shared=False)
    assert [(g.layer, *g.slots) for g in found] == [(layer, slot) for layer in (0, 1) for slot in SLOTS]


def test_a_basis_is_shared_only_where_all_of_its_readers_are_asked_for() -> None:
    found = groups("random:tiny-llama", ("v", "up", "gate", "q"), shared=True)
    assert [g.slots for g in found[:3]] == [("q",), ("v",), ("gate", "up")]


def test_what_shares_a_basis_reads_one_vector() -> None:
    assert all(len({INPUTS[slot] for slot in g.slots}) == 1 for g in groups("random:tiny-gemma", SLOTS, shared=True))
    assert tuple(MODULES) == SLOTS


@pytest.mark.parametrize("ref", MODELS)
def test_planned_shapes_are_those_of_the_model(ref: str) -> None:
    model = loaded(ref)
    for group in groups(ref, SLOTS, shared=True):
        shapes = [tuple(linear(model, group.layer, slot).weight.shape) for slot in group.slots]
        assert shapes == [(out, group.in_features) for out in group.out_features]


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(StudyError, match="there is no such slot; got 'fc1'; valid: q, k, v, o, gate, up, down"):
        groups("random:tiny-llama", ("q", "fc1"), shared=True)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gpt-neox"])
def test_models_without_gates_are_refused(name: str) -> None:
    assert name in SHAPES
    with pytest.raises(ModelError, match=f"the blocks of random:{name} have other matrices than the slots; got '.*0"):
        groups(f"random:{name}", ("q",), shared=False)
    with pytest.raises(ModelError, match=r"layer 0 has no slot q; got '.*'; valid: models with q_proj, k_proj"):
        linear(loaded(f"random:{name}"), 0, "q")


def test_a_layer_beyond_the_last_is_refused() -> None:
    model = loaded()
    for layer in (2, -1):
        with pytest.raises(ModelError, match=f"there is no such layer; got {layer}; valid: 0 to 1"):
            place(model, layer, "q")


def test_a_matrix_that_is_no_plain_linear_is_refused() -> None:
    model = loaded()
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ModelError, match="layer 1, slot up is no plain linear layer; got 'Identity'; valid: a model"):
        linear(model, 1, "up")
