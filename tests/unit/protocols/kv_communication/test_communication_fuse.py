"""Fusion between two prefills and an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from communication_models import (
    contribution,
    largest_difference,
    open_fuser,
    other_sharer,
    prompts,
    receiver,
    row_of,
    sharer,
)

from nullarm.errors import ModelError
from nullarm.models.hashing import settings_hash
from nullarm.protocols.kv_communication.communication.answer import (
    choice_log_likelihoods,
    continue_logits,
    generate,
)
from nullarm.protocols.kv_communication.communication.as_it_goes import as_it_goes
from nullarm.protocols.kv_communication.communication.exchange import Heard
from nullarm.protocols.kv_communication.communication.fuse import Combine, gathered, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, cache_of, padded, prefill

TOLERANCE = 1e-4
"""fp32: rounding of matrix products of other sizes, through a fuser."""
LENGTHS = (9, 4, 17, 2, 30, 12, 6, 5)


def heard(rows: list[list[int]], *, seed: int = 7) -> list[Heard]:
    """A sharer whose tokens are others and fewer, with an unfused token here and there."""
    theirs = prompts(*[max(1, len(row) * 2 // 3) for row in rows], seed=seed)
    return [
        Heard(ids, [-1 if t % 5 == 4 else min(t * 2 // 3, len(ids) - 1) for t in range(len(row) - 1)] + [-1])
        for ids, row in zip(theirs, rows, strict=True)
    ]


def fused_prefix(rows: list[list[int]], *, gates: float = 1.0, combine: Combine = "sequential") -> Prefilled:
    """A receiver's cache of all but the last tokens, fused with those of two sharers."""
    target = receiver()
    given = [
        contribution(open_fuser(model, target, gates=gates, seed=n), model, heard(rows, seed=n))
        for n, model in enumerate((sharer(), other_sharer()))
    ]
    return together(prefill(target, [row[:-1] for row in rows]), given, combine=combine)


def test_source_index_points_into_the_sharers_padded_rows() -> None:
    own = [Heard([1, 2, 3], [0, 2, -1]), Heard([4], [0, -1, 0, 0, -1]), Heard([5, 6], [-1])]
    index = source_index(own, prefill(sharer(), [h.ids for h in own]).mask)
    assert index.tolist() == [[-1, -1, 0, 2], [2, -1, 2, 2], [-1, -1, -1, -1]]


def test_gathering_moves_each_token_and_leaves_unsent_halves_out() -> None:
    key = torch.arange(2 * 2 * 3 * 4).view(2, 2, 3, 4).float()
    streams, mask = gathered({5: (key, None)}, torch.tensor([[2, 2, -1], [-1, 0, 1]]))
    assert mask.tolist() == [[True, True, False], [False, True, True]]
    found = streams[5][0]
    assert found is not None
    assert streams[5][1] is None
    for row, token, source in ((0, 0, 2), (0, 1, 2), (1, 1, 0), (1, 2, 1)):
        assert torch.equal(found[row, :, token], key[row, :, source])


@pytest.mark.parametrize("combine", ["sequential", "parallel"])
def test_with_closed_gates_the_receivers_own_logits_come_out(combine: Combine) -> None:
    target, rows = receiver(), prompts(*LENGTHS)
    cache = fused_prefix(rows, gates=-1.0, combine=combine)
    ids, mask = padded([row[-1:] for row in rows], "cpu", side="right")
    logits = continue_logits(target, cache, ids, mask)
    own = torch.stack([target(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
    assert float((logits - own).abs().max()) < 1e-5 * float(own.abs().max())


@torch.no_grad()
def test_with_open_gates_logits_are_others() -> None:
    target, rows = receiver(), prompts(*LENGTHS)
    ids, mask = padded([row[-1:] for row in rows], "cpu", side="right")
    closed, opened = (continue_logits(target, fused_prefix(rows, gates=g), ids, mask) for g in (-1.0, 1.0))
    assert float((closed - opened).abs().max(1).values.min()) > 0.01


def test_fusing_equals_a_fusion_written_by_hand() -> None:
    """One row at a time, one token at a time, straight from the library's caches."""
    source, target = sharer(), receiver()
    fuser = open_fuser(source, target)
    rows = prompts(*LENGTHS)
    own = heard(rows)
    fused = together(prefill(target, [row[:-1] for row in rows]), [contribution(fuser, source, own)])
    for i, (row, h) in enumerate(zip(rows, own, strict=True)):
        theirs = source(input_ids=torch.tensor([h.ids]), use_cache=True).past_key_values
        mine = target(input_ids=torch.tensor([row[:-1]]), use_cache=True).past_key_values
        for layer, found in enumerate(row_of(fused, i)):
            at = theirs.layers[max(len(theirs.layers) - len(mine.layers) + layer, 0)]
            for t, taken in enumerate(h.source[:-1]):
                expected = (mine.layers[layer].keys[:, :, t : t + 1], mine.layers[layer].values[:, :, t : t + 1])
                if taken >= 0:
                    sent = at.keys[:, :, taken : taken + 1], at.values[:, :, taken : taken + 1]
                    expected = fuser[layer](sent, expected)
                for half, by_hand in zip(found, expected, strict=True):
                    torch.testing.assert_close(half[:, t], by_hand[0, :, 0], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("combine", ["sequential", "parallel"])
@pytest.mark.parametrize("legacy", [False, True])
def test_batch_size_changes_no_answer(legacy: bool, combine: Combine) -> None:
    target, rows, models = receiver(), prompts(*LENGTHS), (sharer(), other_sharer())
    fusers = [open_fuser(model, target, seed=n) for n, model in enumerate(models)]
    own = [heard(rows, seed=n) for n in range(2)]

    def answers(batch: int) -> tuple[list[float], list[list[int] | None]]:
        values: list[float] = []
        written: list[list[int] | None] = []
        for part in (slice(i, i + batch) for i in range(0, len(rows), batch)):
            prefixes, last = [r[:-1] for r in rows[part]], [r[-1] for r in rows[part]]
            given = [contribution(f, m, h[part]) for f, m, h in zip(fusers, models, own, strict=True)]
            if legacy:
                cache = as_it_goes(target, prefixes, given, combine=combine)
            else:
                cache = together(prefill(target, prefixes), given, combine=combine)
            for found in choice_log_likelihoods(target, cache, last, [[[5, 6], [7]]] * len(last)):
                values += found
            written += generate(target, cache, last, 5, ())
        return values, written

    whole, texts = answers(8)
    for batch in (1, 3):
        values, written = answers(batch)
        assert values == pytest.approx(whole, abs=TOLERANCE)
        assert written == texts


def test_several_sharers_one_after_the_other_or_all_on_the_receivers_own() -> None:
    target, rows, models = receiver(), prompts(*LENGTHS), (sharer(), other_sharer())
    own = prefill(target, [row[:-1] for row in rows])
    given = [contribution(open_fuser(m, target, seed=n), m, heard(rows, seed=n)) for n, m in enumerate(models)]
    one_after_the_other = together(together(own, given[:1]), given[1:])
    assert largest_difference(together(own, given, combine="sequential").kv, one_after_the_other.kv) == 0
    alone = [together(own, [c]) for c in given]
    added = [
        tuple(a + b - o for a, b, o in zip(first, second, layer, strict=True))
        for first, second, layer in zip(alone[0].kv, alone[1].kv, own.kv, strict=True)
    ]
    assert largest_difference(together(own, given, combine="parallel").kv, added) < TOLERANCE
    assert largest_difference(one_after_the_other.kv, added) > 0.01


def sending(rows: list[list[int]], share: tuple[float, float]) -> list[Heard]:
    """The same tokens on both sides, fused from one share of the prefix to another."""
    found = []
    for row in rows:
        n = len(row) - 1
        first, stop = (round(part * n) for part in share)
        found.append(Heard(row, [t if first <= t < stop else -1 for t in range(n)] + [-1]))
    return found


def test_as_it_goes_equals_the_whole_when_the_section_is_everything() -> None:
    source, target, rows = sharer(), receiver(), prompts(*LENGTHS)
    given = [contribution(open_fuser(source, target), source, sending(rows, (0, 1)))]
    whole = together(prefill(target, [row[:-1] for row in rows]), given)
    legacy = as_it_goes(target, [row[:-1] for row in rows], given)
    assert torch.equal(legacy.mask, whole.mask)
    assert torch.equal(legacy.positions, whole.positions)
    for row in range(len(rows)):
        assert largest_difference(row_of(legacy, row), row_of(whole, row)) < TOLERANCE


@pytest.mark.parametrize(("share", "heard_of"), [((0, 0.5), True), ((0.5, 1), False)])
def test_as_it_goes_lets_later_tokens_hear_of_fused_ones(share: tuple[float, float], heard_of: bool) -> None:
    """Which is what confounds `front` in the original, and leaves `back` alone."""
    source, target, rows = sharer(), receiver(), prompts(9, 13)
    given = [contribution(open_fuser(source, target), source, sending(rows, share))]
    whole = together(prefill(target, [row[:-1] for row in rows]), given)
    legacy = as_it_goes(target, [row[:-1] for row in rows], given)
    assert (largest_difference(row_of(legacy, 1), row_of(whole, 1)) > 0.01) == heard_of


def test_as_it_goes_equals_sections_run_by_hand() -> None:
    source, target, rows = sharer(), receiver(), prompts(*LENGTHS)
    fuser, own = open_fuser(source, target), heard(rows)
    legacy = as_it_goes(target, [row[:-1] for row in rows], [contribution(fuser, source, own)])
    for i, (row, h) in enumerate(zip(rows, own, strict=True)):
        theirs = prefill(source, [h.ids])
        by_hand: list[Any] = []
        for start in range(0, len(row) - 1, 5):  # four tokens are fused, the fifth is not
            for first, stop in ((start, min(start + 4, len(row) - 1)), (start + 4, min(start + 5, len(row) - 1))):
                if first >= stop:
                    continue
                past = cache_of(by_hand)
                target(input_ids=torch.tensor([row[first:stop]]), past_key_values=past, use_cache=True)
                new = [(layer.keys[:, :, first:], layer.values[:, :, first:]) for layer in past.layers]
                streams, mask = gathered(dict(enumerate(theirs.kv)), torch.tensor([h.source[first:stop]]))
                fused = fuser.fuse(streams, new, mask)
                old = by_hand or [(key[:, :, :0], value[:, :, :0]) for key, value in fused]
                by_hand = [
                    (torch.cat([a, c], 2), torch.cat([b, d], 2)) for (a, b), (c, d) in zip(old, fused, strict=True)
                ]
        assert largest_difference(row_of(legacy, i), [(k[0], v[0]) for k, v in by_hand]) < TOLERANCE


def test_prompts_of_one_token_have_nothing_to_fuse() -> None:
    source, target = sharer(), receiver()
    given = [contribution(open_fuser(source, target), source, [Heard([5], [-1]), Heard([6], [-1])])]
    for cache in (together(prefill(target, [[], []]), given), as_it_goes(target, [[], []], given)):
        assert cache.mask.tolist() == [[False], [False]]
        own = target(input_ids=torch.tensor([[5]])).logits[0, -1].argmax()
        assert generate(target, cache, [5, 6], 1, ())[0] == [int(own)]


@pytest.mark.parametrize("legacy", [False, True])
def test_gradients_flow_to_the_fuser_and_models_stay_as_they_are(legacy: bool) -> None:
    source, target, rows = sharer(), receiver(), prompts(*LENGTHS)
    fuser = open_fuser(source, target).train()
    before = [state_of(source), state_of(target)]
    given = [contribution(fuser, source, heard(rows))]
    prefixes = [row[:-1] for row in rows]
    cache = as_it_goes(target, prefixes, given) if legacy else together(prefill(target, prefixes), given)
    ids, mask = padded([row[-1:] for row in rows], "cpu", side="right")
    continue_logits(target, cache, ids, mask).log_softmax(-1)[:, 3].sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in fuser.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    assert all(p.grad is None for model in (source, target) for p in model.parameters())
    assert [state_of(source), state_of(target)] == before


def test_models_stay_as_they_are_when_something_fails() -> None:
    source, target, rows = sharer(), receiver(), prompts(*LENGTHS)
    before = [state_of(source), state_of(target)]
    misfit = open_fuser(other_sharer(), target)
    given = [contribution(misfit, source, heard(rows))]
    with pytest.raises(ModelError, match="does not fit this projector"):
        as_it_goes(target, [row[:-1] for row in rows], given)
    assert [state_of(source), state_of(target)] == before


def state_of(model: Any) -> Any:
    """Weights, hooks, attributes, modes, of every module."""
    weights = {name: tensor.sum().item() for name, tensor in model.state_dict().items()}
    modules = {
        name: (
            sorted(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks),
            [p.requires_grad for p in m.parameters(recurse=False)],
        )
        for name, m in model.named_modules()
    }  # fmt: skip
    return weights, modules, settings_hash(model.config.to_dict()), str(model.generation_config)
