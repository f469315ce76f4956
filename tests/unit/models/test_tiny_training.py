import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from nullarm.models.threads import one_thread
from nullarm.models.tiny.muon import Muon, orthogonalize
from nullarm.models.tiny.pretrain import epochs, new_model, pack, pair_accuracy, pretrain, world_tokenizer
from nullarm.models.tiny.recipe import WORLD
from nullarm.models.tiny.training import Schedule, padded
from nullarm.models.tiny.world import World

SHORT = replace(
    WORLD, tokenizer_documents=200, corpus_tokens=20_000, warm_start_steps=2, warm_start_check=1, mixed_steps=3
)


def silent(line: str) -> None:
    del line


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 8), (2, 8, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.shape == (shape[0], 8)
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_orthogonalising_keeps_singular_vectors() -> None:
    matrix = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix[0])
    turned = left.T @ orthogonalize(matrix)[0] @ right.T
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4


def test_muon_updates_equal_shapes_as_if_each_were_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(2, 4, 6, generator=generator), torch.randn(2, 4, 6, generator=generator)
    together = [torch.nn.Parameter(w.clone()) for w in start]
    alone = [torch.nn.Parameter(w.clone()) for w in start]
    for parameter, gradient in zip([*together, *alone], [*gradients, *gradients], strict=True):
        parameter.grad = gradient.clone()
    Muon(together, 0.1).step()
    for parameter in alone:
        Muon([parameter], 0.1).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_leaves_alone_what_has_no_gradient_and_decays_the_rest() -> None:
    still, moved = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.zeros(2, 2)
    Muon([still, moved], 0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(2, 2))
    torch.testing.assert_close(moved.detach(), torch.full((2, 2), 0.95))


def test_the_schedule_warms_up_holds_and_decays() -> None:
    schedule = Schedule(1000, 20, 0.45)
    assert schedule.factor(1) == pytest.approx(0.05)
    assert schedule.factor(20) == schedule.factor(550) == 1.0
    assert schedule.factor(775) == pytest.approx(0.5)
    assert schedule.factor(1000) == 0.03


def test_packing_keeps_every_token_in_order() -> None:
    tokenizer = world_tokenizer(SHORT)
    rows = pack(lambda rng: f"{rng.randint(0, 9)} red.", tokenizer, 500, 16, random.Random(0))
    rng = random.Random(0)
    texts = [f"{rng.randint(0, 9)} red." for _ in range(2000)]
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert rows.flatten().tolist() == ids[: rows.numel()]
    assert len(ids) - rows.numel() < 16


def test_an_epoch_has_every_row_once_in_full_batches() -> None:
    batches = epochs(torch.arange(10)[:, None], 3, torch.Generator().manual_seed(0))
    first = torch.cat([next(batches) for _ in range(3)]).flatten().tolist()
    assert len(set(first)) == 9
    second = torch.cat([next(batches) for _ in range(3)]).flatten().tolist()
    assert first != second


def test_padding_carries_no_loss() -> None:
    ids, labels = padded([([5, 6, 7], [-100, 6, 7]), ([8], [8])])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels.tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_digits_are_split_and_any_text_survives() -> None:
    tokenizer = world_tokenizer(SHORT)
    assert [tokenizer.decode([i]) for i in tokenizer("1234")["input_ids"]] == ["1", "2", "3", "4"]
    assert tokenizer.decode(tokenizer("Ünïcode … 漢字")["input_ids"]) == "Ünïcode … 漢字"


def test_training_is_bit_identical_for_a_seed_and_differs_between_seeds() -> None:
    lines: list[str] = []
    with one_thread():
        first, _ = pretrain(SHORT, 0, lines.append)
        second, _ = pretrain(SHORT, 0, silent)
        other, _ = pretrain(SHORT, 1, silent)
    assert same(first, second)
    assert not same(first, other)
    assert lines[0].startswith("warm start, step 1: pair accuracy")
    assert lines[-1] == "trained 2 warm and 3 mixed steps"


def test_a_new_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    new_model(SHORT, 300, 0)
    assert torch.equal(torch.rand(1), expected)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before


def test_pair_accuracy_tells_a_trained_model_from_a_new_one(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    assert pair_accuracy(model, tokenizer, random.Random(5)) > 0.8
    assert pair_accuracy(new_model(WORLD, len(tokenizer), 0), tokenizer, random.Random(5)) < 0.2


def test_the_tokenizer_wastes_no_tokens_on_the_world(world_model: tuple[Any, Any]) -> None:
    rng, world = random.Random(0), World()
    text = " ".join(world.document(rng) for _ in range(200))
    assert len(text) / len(world_model[1](text)["input_ids"]) > 2.5


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
