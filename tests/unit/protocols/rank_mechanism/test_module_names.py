from __future__ import annotations

import pytest

from nullarm.protocols.rank_mechanism.module_names import (
    canonical_name,
    layer_index,
    layer_path,
    module_kind,
    module_type,
    natural_key,
)


@pytest.mark.parametrize(
    ("name", "path", "index", "kind", "type_"),
    [
        ("model.layers.31.self_attn.q_proj", "model.layers.31", 31, "self_attn.q_proj", "attn"),
        ("model.layers.3.mlp.gate_proj", "model.layers.3", 3, "mlp.gate_proj", "mlp"),
        ("layers.0.self_attn.o_proj", "layers.0", 0, "self_attn.o_proj", "attn"),
        ("transformer.h.11.attn.c_proj", "transformer.h.11", 11, "attn.c_proj", "attn"),
        ("transformer.h.11.mlp.c_proj", "transformer.h.11", 11, "mlp.c_proj", "mlp"),
        ("bert.encoder.layer.5.attention.self.query", "bert.encoder.layer.5", 5, "attention.self.query", "attn"),
        ("bert.encoder.layer.5.attention.output.dense", "bert.encoder.layer.5", 5, "attention.output.dense", "attn"),
        ("bert.encoder.layer.5.output.dense", "bert.encoder.layer.5", 5, "output.dense", "mlp"),
        ("encoder.block.2.layer.1.DenseReluDense.wi", "encoder.block.2", 2, "layer.*.DenseReluDense.wi", "mlp"),
        ("decoder.block.2.layer.0.SelfAttention.q", "decoder.block.2", 2, "layer.*.SelfAttention.q", "attn"),
        ("model.layers.4.mlp.experts.7.w1", "model.layers.4", 4, "mlp.experts.*.w1", "mlp"),
        ("model.layers.4.block_sparse_moe.gate", "model.layers.4", 4, "block_sparse_moe.gate", "mlp"),
        ("lm_head", None, None, "lm_head", "other"),
        ("score", None, None, "score", "other"),
        ("model.players.3.coach", None, None, "model.players.*.coach", "other"),
    ],
)
def test_places(name: str, path: str | None, index: int | None, kind: str, type_: str) -> None:
    assert layer_path(name) == path
    assert layer_index(name) == index
    assert module_kind(name) == kind
    assert module_type(name) == type_


def test_canonical_names() -> None:
    assert canonical_name("base_model.model.model.layers.0.q") == "model.layers.0.q"
    assert canonical_name("model.layers.0.q") == "model.layers.0.q"
    assert canonical_name("base_model.model.attn.base_layer.base_layer.out_proj") == "attn.out_proj"


def test_layer_two_comes_before_layer_ten() -> None:
    names = ["model.layers.10.q", "model.layers.2.q", "lm_head"]
    assert sorted(names, key=natural_key) == ["lm_head", "model.layers.2.q", "model.layers.10.q"]
