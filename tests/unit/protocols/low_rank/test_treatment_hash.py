from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from factored_models import factored, ids, loaded, mixed

from nullarm.protocols.low_rank.factored.install import install, replaced
from nullarm.protocols.low_rank.factored.treatment import treatment_hash, weights_hash

REF = "random:tiny-qwen2"


@pytest.fixture
def model() -> Any:
    """Compressed in every way."""
    made = loaded(REF)
    install(made, mixed(made, REF, 5))
    return made


def test_equal_weights_have_equal_hashes(model: Any) -> None:
    assert treatment_hash(model, ids()) == treatment_hash(copy.deepcopy(model), ids())
    again = loaded(REF)
    install(again, mixed(loaded(REF), REF, 5))
    assert treatment_hash(again, ids()) == treatment_hash(model, ids())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.shared.basis",
        "model.layers.0.self_attn.q_proj.shared.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.codes",
        "model.layers.0.mlp.up_proj.scale_bits",
        "model.norm.weight",
    ],
)
def test_one_bit_of_one_tensor_changes_the_hash(model: Any, name: str) -> None:
    before = treatment_hash(model, ids())["weights"]
    bits = model.get_parameter(name) if "codes" not in name and "bits" not in name else model.get_buffer(name)
    bits.data.view(torch.uint8).view(-1)[0] ^= 1
    assert treatment_hash(model, ids())["weights"] != before


def test_buffers_that_no_state_dict_has_are_hashed(model: Any) -> None:
    before = treatment_hash(model, ids())
    assert "model.rotary_emb.inv_freq" not in model.state_dict()
    model.model.rotary_emb.inv_freq[0] *= 2
    after = treatment_hash(model, ids())
    assert after["weights"] != before["weights"]
    assert after["logits"] != before["logits"]


def test_dtype_and_shape_count(model: Any) -> None:
    before = treatment_hash(model, ids())["weights"]
    model.zeros = torch.nn.Buffer(torch.zeros(4))
    four = treatment_hash(model, ids())["weights"]
    model.zeros = torch.nn.Buffer(torch.zeros(2, 2))
    square = treatment_hash(model, ids())["weights"]
    model.zeros = torch.nn.Buffer(torch.zeros(4, dtype=torch.int32))
    assert len({before, four, square, treatment_hash(model, ids())["weights"]}) == 4


def test_logits_tell_a_treatment_from_none() -> None:
    model = loaded(REF)
    plain = treatment_hash(model, ids())
    with replaced(model, factored(model, REF, rank=5)):
        treated = treatment_hash(model, ids())
    assert treated["weights"] != plain["weights"]
    assert treated["logits"] != plain["logits"]
    assert treatment_hash(model, ids()) == plain
    other = treatment_hash(model, ids(8))
    assert other["weights"] == plain["weights"]
    assert other["logits"] != plain["logits"]


def test_half_precision_is_hashed_bit_by_bit() -> None:
    model = loaded(REF, "bfloat16")
    before = treatment_hash(model, ids())
    model.model.norm.weight.data.view(torch.int16)[3] ^= 1
    assert treatment_hash(model, ids())["weights"] != before["weights"]
    assert len(before["weights"]) == len(before["logits"]) == 64


def test_the_hash_of_the_weights_is_that_of_the_treatment_without_a_pass() -> None:
    model = loaded()
    assert weights_hash(model) == treatment_hash(model, ids())["weights"]
