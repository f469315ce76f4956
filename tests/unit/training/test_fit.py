from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import Toy, never, stop_after, toy_fit, toy_items, toy_settings, weights

from nullarm.errors import ForeignStudyError, InvalidResult, ModelError, Preempted, PreflightError, StudyError
from nullarm.training import rng
from nullarm.training.batches import Batches
from nullarm.training.checkpoint import Checkpoints
from nullarm.training.loop import fit
from nullarm.training.settings import TrainSettings


class Momentum:
    """A hook that changes weights from a state of its own, so a lost or doubled call shows in the result."""

    def __init__(self, model: Toy) -> None:
        self._weight, self._velocity = model.head.weight, torch.zeros(())
        self.steps: list[int] = []

    def __call__(self, step: int) -> None:
        assert self._weight.grad is not None, "gradients are still there"
        self.steps.append(step)
        self._velocity = 0.9 * self._velocity + self._weight.grad.abs().mean() * step
        with torch.no_grad():
            self._weight.mul_(1 - 0.1 * self._velocity)

    def state(self) -> dict[str, torch.Tensor]:
        return {"velocity": self._velocity}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._velocity = state["velocity"]


def bare_loop(settings: TrainSettings) -> tuple[Toy, list[float]]:
    model = Toy(dropout=0.0)
    batches = Batches(toy_items(), batch_size=settings.batch_size, seed=3, pad_id=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    losses = []
    for step in range(settings.steps):
        loss = model(**batches.batch(step)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def test_it_does_what_ten_lines_of_torch_do_bit_for_bit(tmp_path: Path) -> None:
    model = Toy(dropout=0.0)
    result = toy_fit(tmp_path, model, toy_settings(warmup_ratio=0.4))
    expected, losses = bare_loop(toy_settings(warmup_ratio=0.4))
    assert result.losses == losses
    assert weights(model) == weights(expected)
    assert result.losses[-1] < result.losses[0]
    assert (result.steps, result.resumed_from, result.skipped) == (6, None, ())
    batches = Batches(toy_items(), batch_size=8, seed=3, pad_id=0)
    assert result.tokens == sum(int(batches.batch(i)["attention_mask"].sum()) for i in range(6))


@pytest.mark.parametrize("stopped_after", range(6))
@pytest.mark.parametrize("accumulation", [1, 3])
def test_interrupted_at_any_step_and_resumed_it_equals_the_undisturbed_run(
    tmp_path: Path, stopped_after: int, accumulation: int
) -> None:
    settings = toy_settings(gradient_accumulation=accumulation, weight_decay=0.1)
    undisturbed, interrupted, resumed = Toy(), Toy(), Toy()
    expected = toy_fit(tmp_path / "undisturbed", undisturbed, settings, extra_step=Momentum(undisturbed))
    before, after = Momentum(interrupted), Momentum(resumed)
    with pytest.raises(Preempted, match=f"after step {stopped_after} of 6") as caught:
        toy_fit(tmp_path / "cut", interrupted, settings, extra_step=before, should_stop=stop_after(stopped_after))
    assert caught.value.exit_code == 75
    result = toy_fit(tmp_path / "cut", resumed, settings, extra_step=after)
    assert result.resumed_from == stopped_after
    assert before.steps + after.steps == [1, 2, 3, 4, 5, 6], "no optimiser step is lost or doubled"
    assert result.losses == expected.losses
    assert result.tokens == expected.tokens
    assert weights(resumed) == weights(undisturbed)


def test_interrupted_at_every_step_in_turn(tmp_path: Path) -> None:
    undisturbed = Toy()
    expected = toy_fit(tmp_path / "undisturbed", undisturbed, toy_settings())
    for _ in range(5):
        with pytest.raises(Preempted):
            toy_fit(tmp_path / "cut", Toy(), toy_settings(), should_stop=stop_after(1))
    model = Toy()
    assert toy_fit(tmp_path / "cut", model, toy_settings()).losses == expected.losses
    assert weights(model) == weights(undisturbed)


def test_without_the_random_state_the_resumed_run_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof that the equality above can fail."""
    expected = toy_fit(tmp_path / "undisturbed", Toy(), toy_settings())
    with pytest.raises(Preempted):
        toy_fit(tmp_path / "cut", Toy(), toy_settings(), should_stop=stop_after(3))
    monkeypatch.setattr(rng, "restore", lambda state, device: None)
    result = toy_fit(tmp_path / "cut", Toy(), toy_settings())
    assert result.losses[:3] == expected.losses[:3]
    assert result.losses[3:] != expected.losses[3:]


def test_a_damaged_checkpoint_costs_the_steps_after_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, resumed = Toy(), Toy()
    expected = toy_fit(tmp_path / "undisturbed", undisturbed, toy_settings())
    with pytest.raises(Preempted), caplog.at_level(logging.WARNING):
        toy_fit(tmp_path / "cut", Toy(), toy_settings(), should_stop=stop_after(5))
    damaged = tmp_path / "cut" / "step-00000005" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:100])
    result = toy_fit(tmp_path / "cut", resumed, toy_settings())
    assert result.resumed_from == 4
    assert [entry.name for entry in result.skipped] == ["step-00000005"]
    assert result.losses == expected.losses
    assert weights(resumed) == weights(undisturbed)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = Toy(), Toy()
    expected = toy_fit(tmp_path, first, toy_settings())
    result = toy_fit(tmp_path, second, toy_settings(), should_stop=lambda: True)
    assert result.resumed_from == 6
    assert result.losses == expected.losses
    assert weights(second) == weights(first)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    toy_fit(tmp_path, Toy(), toy_settings())
    with pytest.raises(ForeignStudyError, match="belongs to another run"):
        toy_fit(tmp_path, Toy(), toy_settings(), fingerprint="cell-2")


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    toy_fit(tmp_path, Toy(), toy_settings())
    other = Toy()
    other.head.bias.requires_grad_(False)
    with pytest.raises(ModelError, match=r"not this model's; got \['head.bias'\]"):
        toy_fit(tmp_path, other, toy_settings())


def test_micro_batches_weigh_as_many_tokens_as_they_have(tmp_path: Path) -> None:
    """Two micro-batches of unequal length are one batch: the step's loss is a mean over tokens."""

    class Halves:
        def __init__(self, whole: Batches) -> None:
            self._whole = whole

        def batch(self, index: int) -> dict[str, torch.Tensor]:
            batch = self._whole.batch(index // 2)
            longest_first = batch["attention_mask"].sum(1).argsort(descending=True)
            rows = longest_first[:2] if index % 2 else longest_first[2:]
            return {name: tensor[rows] for name, tensor in batch.items()}

    whole = Batches(toy_items(), batch_size=8, seed=3, pad_id=0)
    at_once, in_halves = Toy(dropout=0.0), Toy(dropout=0.0)
    arguments: dict[str, Any] = {"fingerprint": "x", "seed": 0, "should_stop": never}
    one = fit(at_once, whole, toy_settings(), directory=tmp_path / "1", **arguments)
    two_settings = toy_settings(gradient_accumulation=2, batch_size=4)
    two = fit(in_halves, Halves(whole), two_settings, directory=tmp_path / "2", **arguments)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert torch.allclose(in_halves.head.weight, at_once.head.weight, atol=1e-4)


@pytest.mark.parametrize("bad_step", [1, 4])
def test_a_loss_that_is_not_finite_is_named_by_its_step_and_never_checkpointed(tmp_path: Path, bad_step: int) -> None:
    calls = iter(range(1, 100))

    def loss_fn(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        factor = math.nan if next(calls) == bad_step else 1.0
        loss: torch.Tensor = model(**batch).loss * factor
        return loss

    with pytest.raises(InvalidResult, match=f"not finite at step {bad_step} of 6; got nan"):
        toy_fit(tmp_path, Toy(), toy_settings(checkpoint_every=1), loss_fn=loss_fn)
    saved, _ = Checkpoints(tmp_path, fingerprint="cell-1", keep=2).latest_valid()
    assert (saved.step if saved else 0) == bad_step - 1


def test_frozen_bf16_parameters_are_not_touched(tmp_path: Path) -> None:
    model = Toy()
    before = model.embedding.weight.clone()
    toy_fit(tmp_path, model, toy_settings())
    assert model.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(model.embedding.weight, before)
    assert model.head.weight.dtype == torch.float32


def test_the_model_and_the_global_generators_are_left_as_they_were(tmp_path: Path) -> None:
    model = Toy().eval()
    model.dropout.train()
    attributes, generators = set(vars(model)), rng.capture(torch.device("cpu"))
    toy_fit(tmp_path, model, toy_settings(precision="bf16"))
    assert (model.training, model.dropout.training) == (False, True)
    assert set(vars(model)) == attributes
    after = rng.capture(torch.device("cpu"))
    assert all(torch.equal(generators[name], after[name]) for name in generators)


def test_precisions_follow_each_other_in_one_process(tmp_path: Path) -> None:
    model = Toy(dropout=0.0)
    half = toy_fit(tmp_path / "bf16", model, toy_settings(precision="bf16"))
    assert model.head.weight.dtype == torch.float32
    full = toy_fit(tmp_path / "fp32", Toy(dropout=0.0), toy_settings())
    assert full.losses == bare_loop(toy_settings())[1]
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do fp16")
def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="fp16 needs a GPU; got 'fp16'; valid: fp32, bf16"):
        toy_fit(tmp_path, Toy(), toy_settings(precision="fp16"))


def test_a_trainable_parameter_in_half_precision_is_refused(tmp_path: Path) -> None:
    model = Toy()
    model.head.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"head\.weight is not fp32; got 'torch.bfloat16'"):
        toy_fit(tmp_path, model, toy_settings())


def test_a_model_with_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Toy has no trainable parameter"):
        toy_fit(tmp_path, Toy().requires_grad_(False), toy_settings())


def test_a_model_without_gradient_checkpointing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Toy offers no gradient checkpointing"):
        toy_fit(tmp_path, Toy(), toy_settings(gradient_checkpointing=True))


def test_progress_tells_steps_and_losses(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    result = toy_fit(tmp_path, Toy(), toy_settings(), on_progress=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(result.losses, start=1))


def test_vectors_do_not_decay(tmp_path: Path) -> None:
    model = Toy()
    before = weights(model)
    no_gradient = toy_settings(steps=1, weight_decay=0.5, learning_rate=0.1)
    toy_fit(tmp_path, model, no_gradient, loss_fn=lambda model, batch: 0.0 * model(**batch).loss)
    after = weights(model)
    assert after["head.bias"] == before["head.bias"]
    assert after["head.weight"] == pytest.approx([0.95 * value for value in before["head.weight"]])
