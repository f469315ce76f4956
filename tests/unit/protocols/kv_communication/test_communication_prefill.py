"""A batch's cache is what each row's would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from communication_models import largest_difference, prompts, receiver, row_of, tiny

from nullarm.errors import DatasetError, ModelError
from nullarm.models.anatomy import SUPPORTED
from nullarm.protocols.kv_communication.communication.prefill import prefill, refuse_too_long, without_last

TOLERANCE = 1e-5
"""fp32: rounding of matrix products of other sizes."""
SHAPES = (
    "tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gemma", "tiny-gemma2", "tiny-gemma3", "tiny-gpt2",
    "tiny-gpt-neox",
)  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_padding_changes_no_keys_or_values(name: str) -> None:
    """Beyond the sliding window of 16 too."""
    model = tiny(name)
    rows = prompts(5, 23, 40)
    cache = prefill(model, rows)
    for i, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([row]), use_cache=True).past_key_values
        expected = [(layer.keys[0], layer.values[0]) for layer in alone.layers]
        for own, layer in zip(row_of(cache, i), expected, strict=True):
            kept = layer[0].shape[1]  # the library forgets what a sliding window no longer sees
            assert largest_difference([[half[:, -kept:] for half in own]], [layer]) < TOLERANCE
        assert cache.positions[i][cache.mask[i]].tolist() == list(range(len(row)))


def test_every_supported_class_is_tried() -> None:
    assert {type(tiny(name)).__name__ for name in SHAPES} == set(SUPPORTED)


def test_rows_may_be_empty() -> None:
    model = receiver()
    cache = prefill(model, [[], [7, 8, 9]])
    assert cache.mask.tolist() == [[False] * 3, [True] * 3]
    assert largest_difference(row_of(cache, 1), row_of(prefill(model, [[7, 8, 9]]), 0)) < TOLERANCE
    assert all(half.isfinite().all() for layer in cache.kv for half in layer)
    assert prefill(model, [[], []]).mask.tolist() == [[False], [False]]


@pytest.mark.parametrize("lengths", [(5, 1, 3), (1, 1)])
def test_without_last_is_the_cache_of_the_rows_but_for_their_last_tokens(lengths: tuple[int, ...]) -> None:
    model, rows = receiver(), prompts(*lengths)
    found, expected = without_last(prefill(model, rows)), prefill(model, [row[:-1] for row in rows])
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.positions, expected.positions)
    for i in range(len(rows)):
        assert largest_difference(row_of(found, i), row_of(expected, i)) < TOLERANCE


def test_what_a_model_has_no_positions_for_is_refused() -> None:
    model = tiny("tiny-gpt2", max_position_embeddings=12)
    refuse_too_long(model, 12)
    prefill(model, prompts(12))
    with pytest.raises(DatasetError, match="a prompt is longer than the model's context; got '13 tokens'; valid: 12"):
        refuse_too_long(model, 13)


def test_the_head_is_not_run_and_no_graph_is_kept() -> None:
    model = receiver().requires_grad_(True)

    def refuse(*_: Any) -> None:
        raise AssertionError("the head was run")

    with model.lm_head.register_forward_pre_hook(refuse):
        cache = prefill(model, prompts(4, 6))
    assert not any(half.requires_grad for layer in cache.kv for half in layer)


def test_a_model_of_unknown_class_is_refused() -> None:
    class SomethingElse(torch.nn.Module):
        pass

    with pytest.raises(ModelError, match=r"not known; got 'SomethingElse'; valid: LlamaForCausalLM"):
        prefill(SomethingElse(), [[1]])
