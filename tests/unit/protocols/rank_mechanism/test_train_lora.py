"""Adapters of a transformers model in the training loop: interruption, gradient checkpointing, other allocators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lora import Item, logits, lora, tiny_batches, tiny_classifier, tiny_modules, tiny_qwen, varied_ranks

from nullarm.errors import AdapterError, DatasetError, InvalidResult, Preempted, StudyError
from nullarm.protocols.rank_mechanism import eva
from nullarm.protocols.rank_mechanism.adalora import AdaLoraHook, build_adalora
from nullarm.protocols.rank_mechanism.eva import build_eva
from nullarm.protocols.rank_mechanism.lora import ADAPTER, adapted_layers, final_ranks, save_adapter
from nullarm.protocols.rank_mechanism.ranks import lora_parameters
from nullarm.training.batches import Batches
from nullarm.training.loop import FitResult, fit
from nullarm.training.settings import TrainSettings

MODULES = tiny_modules()
KNOBS: dict[str, Any] = {"alpha_rule": "fixed", "alpha": 16, "dropout": 0.0, "task_type": "CAUSAL_LM"}
LARGEST_COST = max(module.cost for module in MODULES)


def never() -> bool:
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    asked = count()
    return lambda: next(asked) >= steps


def train(model: Any, directory: Path, *, steps: int = 20, **changes: Any) -> FitResult:
    knobs = {"gradient_checkpointing": changes.pop("gradient_checkpointing", False)}
    settings = TrainSettings(steps=steps, batch_size=8, learning_rate=2e-2, checkpoint_every=5, **knobs)
    arguments: dict[str, Any] = {"fingerprint": "cell", "seed": 4, "should_stop": never}
    return fit(model, tiny_batches(), settings, directory=directory, **{**arguments, **changes})


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_lora_run_with_dropout_resumes_bit_equal(tmp_path: Path) -> None:
    undisturbed, resumed = (lora(varied_ranks(MODULES), dropout=0.1) for _ in range(2))
    expected = train(undisturbed, tmp_path / "undisturbed")
    with pytest.raises(Preempted):
        train(lora(varied_ranks(MODULES), dropout=0.1), tmp_path / "cut", should_stop=stop_after(7))
    result = train(resumed, tmp_path / "cut")
    assert result.resumed_from == 7
    assert result.losses == expected.losses
    assert expected.losses[-1] < 0.95 * expected.losses[0]
    assert_equal(trained(resumed), trained(undisturbed))


def test_a_trained_adapter_reloads_with_equal_logits(tmp_path: Path) -> None:
    from peft import PeftModel

    model = lora(varied_ranks(MODULES))
    train(model, tmp_path / "checkpoints", steps=3)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_qwen(), tmp_path / "adapter")), logits(model))


def test_the_models_configuration_is_as_before(tmp_path: Path) -> None:
    model = lora(varied_ranks(MODULES)).eval()
    assert model.config.use_cache
    train(model, tmp_path, steps=1, gradient_checkpointing=True)
    assert model.config.use_cache
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not any(module.training for module in model.modules())


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    recomputed = []

    def loss_fn(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        recomputed.append(any(getattr(module, "gradient_checkpointing", False) for module in model.modules()))
        loss: torch.Tensor = model(**batch).loss
        return loss

    plain, checkpointed = lora(varied_ranks(MODULES)), lora(varied_ranks(MODULES))
    expected = train(plain, tmp_path / "1", steps=3)
    result = train(checkpointed, tmp_path / "2", steps=3, gradient_checkpointing=True, loss_fn=loss_fn)
    assert recomputed == [True, True, True]
    assert result.losses == pytest.approx(expected.losses, rel=1e-5)


def eva_batches() -> list[dict[str, torch.Tensor]]:
    source = tiny_batches(batch_size=16)
    return [source.batch(i) for i in range(source.per_epoch)]


@pytest.mark.parametrize("target", [4000, 9001])
def test_eva_meets_the_parameter_target_and_starts_from_the_base_model(target: int) -> None:
    model = build_eva(tiny_qwen(), eva_batches(), modules=MODULES, target_parameters=target, **KNOBS)
    ranks = final_ranks(model, MODULES)
    assert len(set(ranks.values())) > 1, "ranks follow the activations"
    assert abs(lora_parameters(ranks, MODULES) - target) <= LARGEST_COST
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == lora_parameters(ranks, MODULES)
    assert torch.equal(logits(model), logits(tiny_qwen()))
    for name, layer in adapted_layers(model).items():
        rows = layer.lora_A[ADAPTER].weight
        assert torch.allclose(rows @ rows.T, torch.eye(ranks[name]), atol=1e-3), "right singular vectors"
        assert layer.scaling[ADAPTER] == 16 / ranks[name]


def test_eva_is_the_same_twice_and_leaves_the_model_and_generators_alone() -> None:
    before = torch.get_rng_state()
    models = []
    for _ in range(2):
        base = tiny_qwen().eval()
        models.append(build_eva(base, eva_batches(), modules=MODULES, target_parameters=4000, **KNOBS))
        assert not base.training
        assert not any(module._forward_hooks for module in base.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(trained(models[0]), trained(models[1]))


def test_eva_that_does_not_settle_says_so_and_leaves_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eva, "MOST_PASSES", 2)
    base = tiny_qwen().train()
    with pytest.raises(InvalidResult, match="have not settled in 2 passes"):
        build_eva(base, eva_batches(), modules=MODULES, target_parameters=4000, **KNOBS)
    assert base.training
    assert not any(module._forward_hooks for module in base.modules())


def test_eva_needs_enough_target_tokens() -> None:
    few = [{name: tensor[:1] for name, tensor in batch.items()} for batch in eva_batches()]
    with pytest.raises(DatasetError, match="at least 2 batches with as many target tokens"):
        build_eva(tiny_qwen(), few, modules=MODULES, target_parameters=20000, **KNOBS)


def test_eva_below_rank_one_is_refused() -> None:
    with pytest.raises(StudyError, match="fewer parameters than rank 1 everywhere; got 100; valid: from 1856"):
        build_eva(tiny_qwen(), eva_batches(), modules=MODULES, target_parameters=100, **KNOBS)


def class_batches() -> Batches:
    source = tiny_batches()
    ids = [source.batch(i)["input_ids"] for i in range(source.per_epoch)]
    items = [Item(row.tolist(), [int(row[0]) % 3]) for batch in ids for row in batch]
    return Batches(items, batch_size=8, seed=0, pad_id=0, labels="item")


@pytest.mark.parametrize("arm", ["lora", "eva", "adalora"])
def test_a_classifier_trains_in_every_kind_of_arm(tmp_path: Path, arm: str) -> None:
    batches, knobs = class_batches(), {**KNOBS, "task_type": "SEQ_CLS"}
    settings = TrainSettings(steps=20, batch_size=8, learning_rate=2e-2)
    hook, model = None, None
    if arm == "lora":
        model = lora(varied_ranks(MODULES), tiny_classifier(), task_type="SEQ_CLS")
    elif arm == "eva":
        some = [batches.batch(i) for i in range(4)]
        model = build_eva(tiny_classifier(), some, modules=MODULES, target_parameters=4000, **knobs)
    else:
        model, hook = build_adalora(
            tiny_classifier(), modules=MODULES, target_parameters=4000, total_steps=20, seed=1, **knobs
        )
    arguments: dict[str, Any] = {"fingerprint": "cell", "seed": 4, "should_stop": never, "extra_step": hook}
    result = fit(model, batches, settings, directory=tmp_path / "checkpoints", **arguments)
    assert min(result.losses[-5:]) < result.losses[0]
    plain = hook.as_lora() if hook else model
    save_adapter(plain, tmp_path / "adapter")
    head = plain.get_submodule("base_model.model.score").modules_to_save[ADAPTER].weight
    assert not torch.equal(head, tiny_classifier().score.weight), "the head is trained"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_of_a_bf16_classifier_trains_in_fp32(tmp_path: Path, precision: Any) -> None:
    base = tiny_classifier().to(torch.bfloat16)
    model = lora(varied_ranks(MODULES), base, task_type="SEQ_CLS")
    before = trained(model)
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    settings = TrainSettings(steps=1, batch_size=8, learning_rate=1e-5, precision=precision)
    fit(model, class_batches(), settings, directory=tmp_path, fingerprint="cell", seed=4, should_stop=never)
    after = trained(model)
    head = next(name for name in before if "score" in name)
    moved = (after[head] - before[head]).abs()
    assert moved.max() < 2e-5
    assert (moved > 0).float().mean() > 0.9, "in bf16 such a step would be rounded away"
    assert logits(model).dtype == torch.float32


def adalora(target: int = 6000, steps: int = 20, **changes: Any) -> tuple[Any, AdaLoraHook]:
    arguments = {**KNOBS, "seed": 1, "modules": MODULES, "total_steps": steps, "target_parameters": target, **changes}
    return build_adalora(tiny_qwen(), **arguments)


@pytest.mark.parametrize("target", [3000, 6001])
def test_adalora_ends_at_the_parameter_target(tmp_path: Path, target: int) -> None:
    model, hook = adalora(target)
    start = lora_parameters(final_ranks(model, MODULES), MODULES)
    assert start >= 1.4 * target
    train(model, tmp_path, extra_step=hook)
    ranks = final_ranks(model, MODULES)
    assert abs(lora_parameters(ranks, MODULES) - target) <= LARGEST_COST
    assert len(set(ranks.values())) > 1
    for name, layer in adapted_layers(model).items():
        assert int((layer.lora_E[ADAPTER] != 0).sum()) == ranks[name], "what is not kept is zero"


def test_adalora_interrupted_before_and_after_the_last_pruning_resumes_bit_equal(tmp_path: Path) -> None:
    undisturbed, hook = adalora(dropout=0.1)
    expected = train(undisturbed, tmp_path / "undisturbed", extra_step=hook)
    for stopped_after in (6, 17):
        model, hook = adalora(dropout=0.1)
        directory = tmp_path / str(stopped_after)
        with pytest.raises(Preempted):
            train(model, directory, extra_step=hook, should_stop=stop_after(stopped_after))
        resumed, hook = adalora(dropout=0.1)
        result = train(resumed, directory, extra_step=hook)
        assert result.resumed_from == stopped_after
        assert result.losses == expected.losses
        assert final_ranks(resumed, MODULES) == final_ranks(undisturbed, MODULES)
        assert_equal(trained(resumed), trained(undisturbed))


@pytest.mark.parametrize("rule", ["fixed", "alpha=r", "rslora"])
def test_a_trained_adalora_becomes_a_plain_lora_that_says_the_same(tmp_path: Path, rule: Any) -> None:
    from peft import PeftModel

    model, hook = adalora(alpha_rule=rule, target=2500)
    train(model, tmp_path / "checkpoints", extra_step=hook)
    said, ranks = logits(model), final_ranks(model, MODULES)
    assert 0 in ranks.values(), "also where a module is left without any rank"
    with pytest.raises(AdapterError, match=r"only LoRA adapters are saved; .*ADALORA"):
        save_adapter(model, tmp_path / "adapter")
    plain = hook.as_lora()
    assert torch.allclose(logits(plain), said, atol=1e-5)
    assert not torch.allclose(logits(plain), logits(tiny_qwen()), atol=1e-2)
    assert final_ranks(plain, MODULES) == ranks
    save_adapter(plain, tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(tiny_qwen(), tmp_path / "adapter")
    assert torch.equal(logits(reloaded), logits(plain))


@pytest.mark.parametrize(("rule", "scale"), [("fixed", 16 / 5), ("alpha=r", 1.0), ("rslora", 16 / 5**0.5)])
def test_adaloras_scale_is_that_of_the_rule_at_the_initial_rank(rule: Any, scale: float) -> None:
    model, _ = adalora(alpha_rule=rule)
    layer = next(iter(adapted_layers(model).values()))
    assert layer.r[ADAPTER] == 5
    assert layer.scaling[ADAPTER] / layer.ranknum[ADAPTER].item() == pytest.approx(scale)


def test_adalora_is_initialised_by_seed_and_module() -> None:
    assert_equal(trained(adalora()[0]), trained(adalora()[0]))
    first, other = trained(adalora(seed=1)[0]), trained(adalora(seed=2)[0])
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_E" not in name)
    assert torch.equal(logits(adalora()[0]), logits(tiny_qwen()))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"steps": 9}, "too few steps; got 9; valid: from 10"), ({"target": 10}, "too few parameters for any rank")],
)
def test_an_adalora_arm_that_cannot_prune_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        adalora(**changes)
