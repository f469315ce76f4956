"""Faults of the original in training, each shown mended (see "Known faults" in the protocol's page)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lora import Item, lora, tiny_batches, tiny_modules, tiny_qwen, varied_ranks

from nullarm.protocols.rank_mechanism.lora import ADAPTER, adapted_layers
from nullarm.training.batches import Batches
from nullarm.training.loop import fit
from nullarm.training.settings import TrainSettings

MODULES = tiny_modules()
PROBE = {module.name: 16 for module in MODULES}
AUDITED = varied_ranks(MODULES)
SHUFFLED = varied_ranks(MODULES, (3, 8, 1, 2, 4))


def rows(ranks: dict[str, int], **changes: Any) -> dict[str, torch.Tensor]:
    return {
        name: layer.lora_A[ADAPTER].weight.detach().clone()
        for name, layer in adapted_layers(lora(ranks, **changes)).items()
    }


def test_fault_unseeded_initialisation_two_builds_with_one_seed_are_equal() -> None:
    torch.manual_seed(1)
    first = rows(AUDITED)
    torch.manual_seed(2)
    second = rows(AUDITED)
    assert all(torch.equal(first[name], second[name]) for name in AUDITED)


def test_fault_unseeded_initialisation_arms_share_rows_whatever_their_ranks() -> None:
    probe, audited, shuffled = rows(PROBE), rows(AUDITED), rows(SHUFFLED)
    for name in AUDITED:
        assert torch.equal(audited[name], probe[name][: AUDITED[name]])
        assert torch.equal(shuffled[name], probe[name][: SHUFFLED[name]])


def test_fault_unseeded_initialisation_seeds_and_modules_differ() -> None:
    first, second = rows(PROBE, seed=1), rows(PROBE, seed=2)
    names = list(PROBE)
    assert not any(torch.equal(first[name], second[name]) for name in names)
    alike = [name for name in names if first[name].shape == first[names[0]].shape]
    assert not any(torch.equal(first[alike[0]], first[name]) for name in alike[1:])


def test_fault_unseeded_initialisation_order_of_the_map_does_not_matter() -> None:
    forwards, backwards = rows(AUDITED), rows(dict(reversed(AUDITED.items())))
    assert all(torch.equal(forwards[name], backwards[name]) for name in AUDITED)


@pytest.mark.parametrize("rule", ["fixed", "alpha=r", "rslora"])
def test_fault_alpha_changed_between_arms_one_rank_has_one_scale_in_every_arm(rule: Any) -> None:
    scales: dict[int, set[float]] = {}
    for ranks in (PROBE, AUDITED, SHUFFLED, varied_ranks(MODULES, (4,))):
        for name, layer in adapted_layers(lora(ranks, alpha_rule=rule)).items():
            scales.setdefault(ranks[name], set()).add(layer.scaling[ADAPTER])
    assert {rank: len(found) for rank, found in scales.items()} == dict.fromkeys((1, 2, 3, 4, 8, 16), 1)


def test_fault_label_mask_overwritten_by_the_collator_prompt_and_padding_carry_no_loss() -> None:
    """The original's collator rebuilt labels from the token ids: prompts were trained on, and EOS, if pad, was not."""
    eos = pad = 0
    items = [Item([5, 6, 7, eos], [-100, -100, 7, eos]), Item([8, 9, 5, 6, 7, eos], [-100] * 4 + [7, eos])]
    batch = Batches(items, batch_size=2, seed=0, pad_id=pad).batch(0)
    order = batch["attention_mask"].sum(1).argsort()
    assert batch["labels"][order].tolist() == [[-100, -100, 7, eos, -100, -100], [-100, -100, -100, -100, 7, eos]]


def test_fault_label_mask_overwritten_by_the_collator_the_loss_is_that_of_the_response() -> None:
    model = tiny_qwen().eval()
    batch = tiny_batches().batch(0)
    with torch.no_grad():
        output = model(**batch)
        expected = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100
        )
        on_everything = model(**{**batch, "labels": batch["input_ids"]}).loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(on_everything.item() - expected.item()) > 1e-3


def test_arms_see_the_same_batches_in_the_same_order(tmp_path: Path) -> None:
    def seen(ranks: dict[str, int], directory: Path) -> list[list[list[int]]]:
        batches: list[list[list[int]]] = []

        def loss_fn(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            batches.append(batch["input_ids"].tolist())
            loss: torch.Tensor = model(**batch).loss
            return loss

        fit(
            lora(ranks),
            tiny_batches(),
            TrainSettings(steps=3, batch_size=8, learning_rate=1e-2),
            directory=directory,
            fingerprint="cell",
            seed=0,
            should_stop=lambda: False,
            loss_fn=loss_fn,
        )
        return batches

    assert seen(AUDITED, tmp_path / "audited") == seen(SHUFFLED, tmp_path / "shuffled")
