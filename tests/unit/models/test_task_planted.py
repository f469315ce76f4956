import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from nullarm.errors import DatasetError
from nullarm.models.facts import linear_shapes
from nullarm.models.load import load_causal_lm
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.planted import BASE, TARGETS, Planted
from nullarm.models.tasks.teacher import planted_update, teacher

TASK = Planted(train_items=64, dev_items=8, test_items=40)
TWIN = replace(TASK, pattern="homogeneous")


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    return load_causal_lm(BASE)


def test_all_projections_are_one_stratum() -> None:
    assert set(linear_shapes(BASE).values()) == {(32, 32)}


def test_half_of_the_modules_are_rich() -> None:
    ranks = TASK.ranks()
    assert len(ranks) == 10
    assert sorted(ranks.values()) == [1] * 5 + [8] * 5
    assert {name.rpartition(".")[2] for name in ranks} == set(TARGETS)
    assert ranks != replace(TASK, seed=1).ranks()


def test_the_homogeneous_twin_has_nothing_to_place() -> None:
    assert set(TWIN.ranks().values()) == {8}


@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_an_update_has_the_rank_and_the_size_it_should(rank: int) -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    update = planted_update(weight, rank, 0.5, torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(update)
    assert int((values > 1e-5).sum()) == rank
    assert float(update.norm()) == pytest.approx(0.5 * float(weight.norm()) * (rank > 0), rel=1e-5)
    torch.testing.assert_close(values[:rank], values[:1].expand(rank))


def test_the_teacher_differs_from_the_base_by_exactly_the_ranks(base: tuple[Any, Any]) -> None:
    guide, truth = teacher(TASK), TASK.ranks()
    for name, parameter in base[0].named_parameters():
        difference = guide.get_parameter(name) - parameter
        assert (
            int(torch.linalg.matrix_rank(difference, rtol=1e-3)) == truth.get(name.removesuffix(".weight"), 0)
            if (difference.ndim == 2)
            else not difference.any()
        )


def test_the_teacher_agrees_with_itself(base: tuple[Any, Any]) -> None:
    results = evaluate(TASK, teacher(TASK), base[1], TASK.items("test"), batch_size=16)
    metrics = TASK.metrics(results)
    assert (metrics["accuracy"], metrics["agreement"]) == (1.0, 1.0)
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)


def test_the_base_does_not_agree_with_the_teacher(base: tuple[Any, Any]) -> None:
    results = evaluate(TASK, *base, TASK.items("test"), batch_size=16)
    metrics = TASK.metrics(results)
    assert metrics["agreement"] < 0.3
    assert metrics["loss"] > 1.0
    assert all(r.correct == (r.prediction == r.target) for r in results)


def test_results_do_not_depend_on_the_batch(base: tuple[Any, Any]) -> None:
    small, large = (evaluate(TASK, *base, TASK.items("dev"), batch_size=size) for size in (3, 8))
    assert [r.item_id for r in small] == [i.id for i in TASK.items("dev")]
    for a, b in zip(small, large, strict=True):
        assert (a.prediction, a.target, a.score) == (b.prediction, b.target, b.score)
        assert a.loss == pytest.approx(b.loss, abs=1e-5)


def test_every_word_is_followed_by_a_draw(base: tuple[Any, Any]) -> None:
    items = TASK.items("train")
    encoded = TASK.encode_training(base[1], items)
    for item, example in zip(items, encoded, strict=True):
        words = base[1](item.prompt)["input_ids"]
        assert example.ids[:-1] == words
        assert example.labels[0] == -100
        assert example.ids[-1] == example.labels[-1]
        assert len(example.labels) == TASK.tokens_per_item
    assert TASK.encode_training(base[1], items[5:7]) == encoded[5:7]


def test_draws_follow_the_teacher(base: tuple[Any, Any]) -> None:
    task = replace(TASK, train_items=600)
    encoded = task.encode_training(base[1], task.items("train"))
    ids, labels = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "labels"))
    with torch.no_grad():
        likely = teacher(task)(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    surprise = -likely.gather(-1, labels[:, 1:, None]).mean()
    entropy = -(likely.exp() * likely).sum(-1).mean()
    assert float(surprise) == pytest.approx(float(entropy), rel=0.03)


def test_splits_differ_and_never_end_the_text_early() -> None:
    prompts = {split: {i.prompt for i in TASK.items(split)} for split in ("train", "dev", "test")}
    assert not prompts["train"] & prompts["test"]
    assert "w0" not in " ".join(prompts["train"]).split()
    assert {s: TASK.count(s) for s in ("train", "dev", "test")} == {s: len(p) for s, p in prompts.items()}


def test_content_follows_from_the_settings() -> None:
    assert len({t.content_id() for t in (TASK, TWIN, replace(TASK, seed=1), replace(TASK, update_size=0.4))}) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pattern": "mixed"}, "planted.pattern names no pattern; got 'mixed'; valid: heterogeneous, homogeneous"),
        ({"high_rank": 33}, "planted.high_rank is out of range; got 33; valid: 0 to 32"),
        ({"low_rank": -1}, "planted.low_rank is out of range"),
        ({"dev_items": 0}, "planted.dev_items is out of range; got 0; valid: > 0"),
        ({"update_size": 0.0}, "planted.update_size is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        Planted(**settings)
    assert words in str(caught.value)


@pytest.mark.slow
def test_right_ranks_beat_the_same_ranks_elsewhere_and_an_audit_finds_them() -> None:
    task = Planted(test_items=200)
    truth = task.ranks()
    probe = trained(task, dict.fromkeys(truth, 16))
    assert {name: 8 if rank > 4 else 1 for name, rank in energy_ranks(probe).items()} == truth
    elsewhere = list(truth.values())
    random.Random(0).shuffle(elsewhere)
    right, wrong = (loss(task, trained(task, r)) for r in (truth, dict(zip(truth, elsewhere, strict=True))))
    assert right < 0.75 * wrong


@pytest.mark.slow
def test_the_twin_shows_nothing_to_place() -> None:
    task = Planted(pattern="homogeneous", even_rank=4)
    found = energy_ranks(trained(task, dict.fromkeys(task.ranks(), 16)))
    assert set(found.values()) == {4}


def trained(task: Planted, ranks: dict[str, int], steps: int = 300) -> Any:
    """A LoRA student: 300 steps of batch 32 at 2e-2, warmed up over 15, then falling to nothing."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_causal_lm(BASE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, task_type="CAUSAL_LM")
        student = get_peft_model(model, config).train()
    encoded = task.encode_training(tokenizer, task.items("train"))
    ids, labels = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "labels"))
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(ids), (32,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * min((step + 1) / 15, 1 - step / steps)
        student(input_ids=ids[rows], labels=labels[rows]).loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return student


def loss(task: Planted, student: Any) -> float:
    _, tokenizer = load_causal_lm(BASE)
    return task.metrics(evaluate(task, student, tokenizer, task.items("test"), batch_size=100))["loss"]


def energy_ranks(student: Any) -> dict[str, int]:
    """Least rank that keeps 0.9 of the squared singular values, by module name."""
    found = {}
    for name, module in student.named_modules():
        if hasattr(module, "lora_A"):
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            energy = torch.linalg.svdvals(update.detach()).square().cumsum(0)
            found[name.removeprefix("base_model.model.")] = int((energy < 0.9 * energy[-1]).sum()) + 1
    return found
