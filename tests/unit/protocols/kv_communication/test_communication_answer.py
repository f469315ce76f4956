"""Answers from a cache equal those of the model without one."""

from __future__ import annotations

from math import isnan
from typing import Any

import pytest
import torch
from communication_models import poisoned, prompts, receiver, tiny
from torch import Tensor

from nullarm.protocols.kv_communication.communication import answer
from nullarm.protocols.kv_communication.communication.answer import (
    choice_log_likelihoods,
    continue_logits,
    generate,
    stop_ids_of,
)
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill

TOLERANCE = 1e-4
"""Nats, fp32: rounding of matrix products of other sizes, over the tokens of a choice."""
LENGTHS = (9, 4, 17, 1, 30, 12, 6, 5)


def likelihoods(model: Any, rows: list[list[int]], choices: list[list[list[int]]], batch: int) -> list[list[float]]:
    found = []
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        cache = prefill(model, [row[:-1] for row in part])
        found += choice_log_likelihoods(model, cache, [row[-1] for row in part], choices[i : i + batch])
    return found


def without_cache(model: Any, row: list[int], choice: list[int]) -> float:
    logits = model(input_ids=torch.tensor([row + choice]), use_cache=False).logits[0].float()
    log_p = logits[len(row) - 1 : -1].log_softmax(-1)
    return float(log_p[range(len(choice)), choice].sum())


def choices_of(kind: str) -> list[list[list[int]]]:
    longer = prompts(*[3, 1, 2, 5] * len(LENGTHS), seed=3)
    if kind == "letters":
        return [[[10], [11], [12]] for _ in LENGTHS]
    if kind == "shared beginnings":
        return [[[10, 11, 12], [10, 11, 13], [10, 11], [9]] for _ in LENGTHS]
    return [longer[4 * i : 4 * i + 2 + i % 3] for i in range(len(LENGTHS))]


@pytest.mark.parametrize("kind", ["letters", "shared beginnings", "of any length"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-mistral", "tiny-gpt2"])
def test_likelihoods_equal_a_whole_forward_pass_without_a_cache(name: str, kind: str) -> None:
    """Gemma 2 with its softcap, Gemma 2 and Mistral beyond their sliding windows."""
    model, rows, choices = tiny(name), prompts(*LENGTHS), choices_of(kind)
    found = likelihoods(model, rows, choices, batch=8)
    for row, own, values in zip(rows, choices, found, strict=True):
        assert values == pytest.approx([without_cache(model, row, choice) for choice in own], abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["letters", "of any length"])
def test_neither_batch_nor_group_size_changes_likelihoods(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, choices = receiver(), prompts(*LENGTHS), choices_of(kind)
    whole = likelihoods(model, rows, choices, batch=8)
    monkeypatch.setattr(answer, "GROUP_BYTES", 20_000)
    for batch in (1, 3, 8):
        for one, other in zip(whole, likelihoods(model, rows, choices, batch), strict=True):
            assert one == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize(("bytes_", "largest"), [(2**30, 16), (1, 1)])
def test_groups_are_bounded_by_memory(bytes_: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "GROUP_BYTES", bytes_)
    model, rows = receiver(), prompts(*LENGTHS)
    sizes: list[int] = []
    with model.model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    ):
        likelihoods(model, rows, [[[5, 6], [7, 8]] for _ in rows], batch=8)
    assert sizes[1:] == [largest] * (16 // largest)


def test_single_letters_take_one_row_each_item_and_one_row_of_logits() -> None:
    model, rows = receiver(), prompts(*LENGTHS)
    shapes: list[torch.Size] = []
    with model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape)):
        likelihoods(model, rows, [[[5], [6], [7], [8]] for _ in rows], batch=8)
    assert shapes == [(8, model.config.hidden_size)]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_generation_equals_the_librarys(batch: int) -> None:
    model, rows = receiver(), prompts(*LENGTHS)
    plain = [greedy(model, row, 12, eos=None) for row in rows]
    stop = {plain[0][3], plain[4][0], plain[2][7]}
    expected = [greedy(model, row, 12, eos=sorted(stop)) for row in rows]
    assert len({len(ids) for ids in expected}) > 2
    found = []
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        found += generate(model, prefill(model, [r[:-1] for r in part]), [r[-1] for r in part], 12, stop)
    assert found == [[t for t in ids if t not in stop] for ids in expected]


def greedy(model: Any, row: list[int], most: int, eos: list[int] | None) -> list[int]:
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=eos, pad_token_id=0)
    mask = torch.ones(1, len(row), dtype=torch.long)
    out = model.generate(input_ids=torch.tensor([row]), attention_mask=mask, generation_config=settings)
    ids: list[int] = out[0, len(row) :].tolist()
    return ids


def test_a_row_that_has_ended_is_no_longer_run() -> None:
    model, rows = receiver(), prompts(5, 8)
    first = greedy(model, rows[0], 1, None)[0]
    sizes: list[int] = []
    with model.lm_head.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0]))):
        generate(model, prefill(model, [r[:-1] for r in rows]), [r[-1] for r in rows], 4, {first})
    assert sizes == [2, 1, 1, 1]


def test_nothing_is_written_when_nothing_may_be() -> None:
    model = receiver()
    assert generate(model, prefill(model, [[4, 5]]), [6], 0, ()) == [[]]


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (3, {3}), ([3, 4], {3, 4})])
def test_the_models_own_stop_tokens(eos: Any, expected: set[int]) -> None:
    model = receiver()
    model.generation_config.eos_token_id = eos
    assert stop_ids_of(model) == expected


def test_logits_to_train_on_equal_a_whole_forward_pass() -> None:
    model, rows = receiver(), prompts(6, 3, 11)
    after = prompts(4, 1, 2, seed=5)
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.bool)
    for i, (row, more) in enumerate(zip(rows, after, strict=True)):
        ids[i, : 1 + len(more)] = torch.tensor([row[-1], *more])
        mask[i, : 1 + len(more)] = True
    found = continue_logits(model, prefill(model, [row[:-1] for row in rows]), ids, mask)
    whole = [model(input_ids=torch.tensor([r + m])).logits[0, len(r) - 1 :] for r, m in zip(rows, after, strict=True)]
    torch.testing.assert_close(found, torch.cat(whole), atol=1e-4, rtol=1e-4)


def test_gradients_of_the_cache_are_those_of_finite_differences() -> None:
    model = receiver().double()
    cache = prefill(model, prompts(4, 2))
    ids, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[True, True], [True, False]])

    def loss(value: Tensor) -> Tensor:
        kv = [(key, value if layer == 1 else own) for layer, (key, own) in enumerate(cache.kv)]
        logits = continue_logits(model, Prefilled(kv, cache.mask, cache.positions), ids, mask)
        return logits.log_softmax(-1)[:, 3].sum()

    value = cache.kv[1][1].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(value), value)
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
    with torch.no_grad():
        numeric = (loss(value + 1e-3 * direction) - loss(value - 1e-3 * direction)) / 2e-3
    # logits are fp32 whatever the weights are, which bounds what a difference can show
    assert float(numeric) == pytest.approx(float((gradient * direction).sum()), rel=1e-2)
    assert gradient[1, :, :2].eq(0).all()


def test_without_numbers_nothing_is_written_and_nothing_is_likely() -> None:
    model, rows = receiver(), prompts(5, 3, 8)
    rows[1][0] = 2
    with poisoned(model, 2):
        cache, last = prefill(model, [row[:-1] for row in rows]), [row[-1] for row in rows]
        written = generate(model, cache, last, 4, ())
        scores = choice_log_likelihoods(model, cache, last, [[[10], [11, 12]]] * 3)
    clean = generate(model, prefill(model, [row[:-1] for row in rows]), last, 4, ())
    assert written == [clean[0], None, clean[2]]
    assert [[isnan(value) for value in values] for values in scores] == [[False] * 2, [True] * 2, [False] * 2]


def test_numbers_that_are_lost_on_the_way_spoil_the_row() -> None:
    model, row = receiver(), prompts(6)[0]
    cache = prefill(model, [row[:-1]])
    (first,) = generate(model, cache, row[-1:], 1, ())
    assert first is not None
    with poisoned(model, first[0]):
        assert generate(model, cache, row[-1:], 4, ()) == [None]
