from __future__ import annotations

from typing import Any

import pytest
import torch
from small_fusers import RECEIVER, SHARER, SMALL, cache, fuser, kv, projector, same, sent
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nullarm.errors import ModelError
from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser, fuse_in_parallel, fuse_sequentially, k_nearest
from nullarm.protocols.kv_communication.geometry import HALVES, Geometry, Stream

MASK = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]]).bool()


def close(gates_of: Fuser, target: int, *halves: str) -> None:
    for half in halves:
        gates_of[target].get_parameter(f"{half}_gate_logit").data.fill_(-1)


# What a fuser holds


def test_layers_are_mapped_last_to_last_by_default() -> None:
    made = Fuser.create(SHARER, RECEIVER, **SMALL)
    assert made.layers == {0: ((0, 0),), 1: ((0, 1),), 2: ((1, 2),), 3: ((2, 3),)}
    assert list(made) == [0, 1, 2, 3]
    assert len(made) == 4
    assert len(made.projectors) == 4


def test_each_source_of_a_layer_has_a_projector_of_its_own() -> None:
    made = Fuser.create(SHARER, RECEIVER, k_nearest(3, 4, 2), **SMALL)
    assert made.layers == {0: ((0, 0), (1, 1)), 1: ((0, 2), (1, 3)), 2: ((1, 4), (2, 5)), 3: ((1, 6), (2, 7))}


def test_a_layer_gives_its_projector() -> None:
    made = fuser()
    source, target = kv(SHARER), kv(RECEIVER)
    key, value = made[2](source, target)
    assert made[2] is made.projectors[2]
    assert key.shape == value.shape == (2, 3, 6, 5)
    assert not torch.equal(key, target[0])


def test_a_layer_without_one_projector_gives_none() -> None:
    with pytest.raises(ModelError, match="target layer 9 has 0 projectors, not one; valid: 0, 1, 2, 3"):
        fuser()[9]
    with pytest.raises(ModelError, match="target layer 0 has 2 projectors, not one; valid: call `fuse` instead"):
        fuser(layer_map=k_nearest(3, 4, 2))[0]


def test_options_reach_every_projector() -> None:
    made = Fuser.create(SHARER, RECEIVER, hidden_dim=6, intermediate_dim=7, dropout=0.2, anneal_steps=5)
    made.set_step(5)
    for index in made:
        assert made[index].init_args["dropout"] == 0.2
        assert made[index].gate_temperature.item() == pytest.approx(0.001)
        assert made[index].get_parameter("value_mlp1.blocks.0.w1.weight").shape == (7, 6)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "a fuser has no projector for a layer"),
        ({0: ()}, "a fuser has no projector for a layer"),
        ({0: ((0, 1),)}, r"target layer 0 of a fuser has an entry out of range; got \(0, 1\); "
                         r"valid: \(source layer from 0, projector from 0 to 0\)"),
        ({0: ((0, -1),)}, r"target layer 0 of a fuser has an entry out of range; got \(0, -1\)"),
        ({0: ((-1, 0),)}, r"target layer 0 of a fuser has an entry out of range; got \(-1, 0\)"),
        ({-1: ((0, 0),)}, "target layer -1 of a fuser has an entry out of range"),
    ],
)  # fmt: skip
def test_entries_out_of_range_are_refused(layers: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Fuser([projector()], layers)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (Geometry(2, 2, 4), RECEIVER, "the fuser does not fit this sharer; got '2 layers, 2 heads of 4'; "
                                      "valid: at least 3 layers, 2 heads of 4"),
        (Geometry(3, 4, 2), RECEIVER, "the fuser does not fit this sharer; got '3 layers, 4 heads of 2'"),
        (SHARER, Geometry(3, 3, 5), "the fuser does not fit this receiver; got '3 layers, 3 heads of 5'; "
                                    "valid: at least 4 layers, 3 heads of 5"),
        (SHARER, SHARER, "the fuser does not fit this receiver"),
    ],
)  # fmt: skip
def test_models_of_another_shape_are_refused(source: Geometry, target: Geometry, words: str) -> None:
    fuser().check_fits(SHARER, RECEIVER)
    with pytest.raises(ModelError, match=words):
        fuser().check_fits(source, target)


# What has to be sent


def test_streams_are_what_open_gates_need_each_once() -> None:
    made = fuser()
    assert made.streams() == tuple(Stream(layer, half) for layer in range(3) for half in HALVES)
    close(made, 0, "key", "value")
    assert len(made.streams()) == 6  # target layer 1 still reads layer 0
    close(made, 1, "key")
    close(made, 3, "value")
    assert made.streams() == ((0, "value"), (1, "key"), (1, "value"), (2, "key"))


def test_nothing_has_to_be_sent_when_all_gates_are_closed() -> None:
    made, target = fuser(gates=0.0), cache(RECEIVER)
    assert made.streams() == ()
    with FlopCounterMode(display=False) as counter:
        fused = made.fuse({}, target)
    assert counter.get_total_flops() == 0
    assert all(a is b for left, right in zip(fused, target, strict=True) for a, b in zip(left, right, strict=True))


def test_in_training_everything_is_sent_but_what_fixed_gates_leave_out() -> None:
    made = fuser(gates=-1.0).train()
    assert len(made.streams()) == 6
    made[3].gate_logit("key").data.fill_(1)
    made.fix_gates()
    assert made.streams() == ((2, "key"),)


def test_fixed_gates_leave_to_train_what_is_behind_open_ones() -> None:
    made = fuser()
    close(made, 1, "key")
    close(made, 3, "key", "value")
    made.fix_gates()
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    expected = {
        name
        for name, _ in made.named_parameters()
        if "gate" not in name and not name.startswith(("projectors.1.key_", "projectors.3."))
    }
    assert trained == expected


def test_a_fuser_without_an_open_gate_has_nothing_to_train() -> None:
    with pytest.raises(ModelError, match="every gate of the fuser is closed: nothing to train"):
        fuser(gates=-1.0).fix_gates()


def test_only_the_streams_are_read() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER, seed=2)
    close(made, 2, "key")
    close(made, 3, "value")
    assert same(made.fuse(sent(source, made.streams()), target), made.fuse(sent(source), target))


def test_a_stream_that_is_missing_is_named() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER)
    streams = tuple(stream for stream in made.streams() if stream != (1, "value"))
    words = "the sharer's value of layer 1 is missing; valid: all of `streams.*`; sent: key of 0, value of 0, key of 1,"
    with pytest.raises(ModelError, match=words):
        made.fuse(sent(source, streams), target)
    with pytest.raises(ModelError, match=r"the sharer's key of layer 0 is missing; .* sent: nothing"):
        made.fuse({}, target)


# Fusing


def test_every_layer_is_fused_by_its_projector() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER, seed=2)
    fused = made.fuse(sent(source), target)
    assert same(fused, [made[t](source[max(t - 1, 0)], target[t]) for t in range(4)])


def test_layers_without_projector_are_left_alone() -> None:
    made, target = Fuser([projector()], {1: ((2, 0),)}), cache(RECEIVER, seed=2)
    fused = made.eval().fuse(sent(cache(SHARER)), target)
    changed = [
        not torch.equal(a, b) for left, right in zip(fused, target, strict=True) for a, b in [(left[0], right[0])]
    ]
    assert changed == [False, True, False, False]


def test_changes_of_several_sources_are_added_up() -> None:
    made = fuser(layer_map=k_nearest(3, 4, 2))
    source, target = cache(SHARER), cache(RECEIVER, seed=2)
    fused = made.fuse(sent(source), target)
    for t, entries in made.layers.items():
        for n in range(2):
            change = torch.zeros_like(target[t][n])
            for s, index in entries:
                layer = made.projectors[index]
                assert isinstance(layer, C2CProjector)
                change += layer(source[s], target[t])[n] - target[t][n]
            assert torch.allclose(fused[t][n], target[t][n] + change, atol=1e-5)


def test_a_mask_fuses_there_and_nowhere_else() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER, seed=2)
    masked, everywhere = made.fuse(sent(source), target, MASK), made.fuse(sent(source), target)
    for out, full, before in zip(masked, everywhere, target, strict=True):
        for n in range(2):
            expected = torch.where(MASK[:, None, :, None], full[n], before[n])
            assert torch.allclose(out[n], expected, atol=1e-6)
            assert torch.equal(out[n].transpose(1, 2)[~MASK], before[n].transpose(1, 2)[~MASK])


def test_masked_positions_cost_nothing_and_are_not_read() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER, seed=2)
    with FlopCounterMode(display=False) as everywhere:
        made.fuse(sent(source), target)
    expected = made.fuse(sent(source), target, MASK)
    for pair in source:
        for tensor in pair:
            tensor.transpose(1, 2)[~MASK] = float("nan")
    with FlopCounterMode(display=False) as masked:
        fused = made.fuse(sent(source), target, MASK)
    assert masked.get_total_flops() == everywhere.get_total_flops() * 6 / 12
    assert same(fused, expected)


def test_an_empty_mask_changes_nothing() -> None:
    target = cache(RECEIVER, seed=2)
    assert same(fuser().fuse(sent(cache(SHARER)), target, torch.zeros(2, 6, dtype=torch.bool)), target)


def test_the_target_is_not_written_to() -> None:
    source, target = cache(SHARER), cache(RECEIVER, seed=2)
    fuser().fuse(sent(source), target, MASK)
    assert same(target, cache(RECEIVER, seed=2))
    assert same(source, cache(SHARER))


def test_items_of_a_batch_do_not_see_each_other() -> None:
    made, source, target = fuser(), cache(SHARER), cache(RECEIVER, seed=2)
    whole = made.fuse(sent(source), target, MASK)
    for b in range(2):
        alone = made.fuse(
            sent([(k[b : b + 1], v[b : b + 1]) for k, v in source]),
            [(k[b : b + 1], v[b : b + 1]) for k, v in target],
            MASK[b : b + 1],
        )
        for out, single in zip(whole, alone, strict=True):
            assert torch.allclose(out[0][b], single[0][0], atol=1e-6)
            assert torch.allclose(out[1][b], single[1][0], atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target", "mask", "words"),
    [
        (cache(SHARER), cache(RECEIVER)[:3], None, "the receiver has too few layers; got 3; valid: from 4"),
        (cache(SHARER), cache(RECEIVER), MASK[:, :5], r"the mask has another shape; got \(2, 5\); valid: \(2, 6\)"),
        (cache(SHARER, tokens=7), cache(RECEIVER), MASK,
         r"keys or values are of other sequences than the receiver's; got \(2, 2, 7, 4\); valid: batch 2 and 6 tokens"),
        (cache(SHARER, batch=1), cache(RECEIVER), None, "keys or values are of other sequences than the receiver's"),
        (cache(RECEIVER), cache(RECEIVER), MASK, "the key of the source does not fit this projector"),
    ],
)  # fmt: skip
def test_caches_that_do_not_fit_are_refused(source: Any, target: Any, mask: Tensor | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fuser().fuse(sent(source), target, mask)


# Several sharers


def test_sequential_fusers_see_each_others_work() -> None:
    first, second = fuser(seed=0), fuser(seed=1)
    sources, target = [sent(cache(SHARER, seed=s)) for s in (1, 3)], cache(RECEIVER, seed=2)
    masks = [MASK, ~MASK | MASK]
    fused = fuse_sequentially([first, second], sources, target, masks)
    assert same(fused, second.fuse(sources[1], first.fuse(sources[0], target, MASK), masks[1]))
    assert not same(fused, fuse_sequentially([second, first], sources[::-1], target, masks[::-1]))


@pytest.mark.parametrize("masks", [[None, None], [MASK, ~MASK], [MASK, None]])
def test_parallel_fusers_see_the_target_and_their_changes_are_added(masks: list[Tensor | None]) -> None:
    fusers = [fuser(seed=0), fuser(seed=1)]
    close(fusers[1], 2, "key")
    sources, target = [sent(cache(SHARER, seed=s)) for s in (1, 3)], cache(RECEIVER, seed=2)
    fused = fuse_in_parallel(fusers, sources, target, masks)
    each = [f.fuse(s, target, m) for f, s, m in zip(fusers, sources, masks, strict=True)]
    for t in range(4):
        for n in range(2):
            expected = each[0][t][n] + each[1][t][n] - target[t][n]
            assert torch.allclose(fused[t][n], expected, atol=1e-5)


def test_one_sharer_is_the_same_in_either_way() -> None:
    made, source, target = fuser(), sent(cache(SHARER)), cache(RECEIVER, seed=2)
    expected = made.fuse(source, target, MASK)
    assert same(fuse_sequentially([made], [source], target, [MASK]), expected)
    assert same(fuse_in_parallel([made], [source], target, [MASK]), expected)


# Training


def test_gradients_reach_the_fuser_and_nothing_frozen() -> None:
    """The caches come from frozen layers; the loss goes through a frozen layer again, as through the receiver."""
    frozen = nn.Linear(5, 5).requires_grad_(False)
    before = [parameter.clone() for parameter in frozen.parameters()]
    made = fuser(gates=0.0).train()
    target = [(frozen(key), frozen(value)) for key, value in cache(RECEIVER, seed=2)]
    source = cache(SHARER)
    torch.manual_seed(0)
    fused = made.fuse(sent(source), target, MASK)
    loss = torch.stack([frozen(kv).square().mean() for pair in fused for kv in pair]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in made.parameters())
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(frozen.parameters(), before, strict=True))
    assert not any(tensor.requires_grad for pair in (*target, *source) for tensor in pair)


def test_padding_that_is_nan_spoils_no_gradient() -> None:
    made, source, target = fuser().train(), cache(SHARER), cache(RECEIVER, seed=2)
    for pair in (*source, *target):
        for tensor in pair:
            tensor.transpose(1, 2)[~MASK] = float("nan")
    torch.manual_seed(0)
    fused = made.fuse(sent(source), target, MASK)
    sum((kv.transpose(1, 2)[MASK].square().sum() for pair in fused for kv in pair), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_a_step_of_training_lowers_the_loss_with_gates_fixed() -> None:
    """Quantisation-aware fine-tuning: gates stay, the rest learns, and closed halves are not computed."""
    made, source, target = fuser(), sent(cache(SHARER)), cache(RECEIVER, seed=2)
    close(made, 1, "key", "value")
    made.fix_gates()
    wanted = cache(RECEIVER, seed=5)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.01)

    def loss() -> Tensor:
        fused = made.fuse(source, target, MASK)
        return torch.stack(
            [(a - b).square().mean() for f, w in zip(fused, wanted, strict=True) for a, b in zip(f, w, strict=True)]
        ).sum()

    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert loss() < before
    assert [made[t].gate_logit("key").item() for t in made] == [1.0, -1.0, 1.0, 1.0]
    assert all(parameter.grad is None for parameter in made[1].parameters())
