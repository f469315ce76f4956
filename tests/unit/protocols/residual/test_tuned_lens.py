from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nullarm.errors import ModelError, Preempted
from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.models.instantiate import instantiate
from nullarm.models.load import load_causal_lm
from nullarm.protocols.residual.capture.tuned_lens import Translators, mean_divergence, train_translators
from nullarm.training.settings import TrainSettings

STEPS = 6


class Texts:
    """Random token ids, one batch like the other in shape, right-padded."""

    def batch(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        mask = torch.ones(4, 12, dtype=torch.long)
        mask[0, 8:] = 0
        return {"input_ids": torch.randint(5, 200, (4, 12), generator=generator), "attention_mask": mask}


@pytest.fixture(scope="module")
def world() -> Anatomy:
    return anatomy(load_causal_lm("builtin:world")[0])


def train(
    parts: Anatomy, directory: Path, *, steps: int = STEPS, should_stop: Callable[[], bool] = lambda: False
) -> Translators:
    knobs = TrainSettings(steps=steps, batch_size=4, learning_rate=1e-3, checkpoint_every=2)
    return train_translators(
        parts, Texts(), knobs, directory=directory, fingerprint="test", seed=0, should_stop=should_stop
    )


def identity(parts: Anatomy) -> Translators:
    return Translators.identity(len(parts.blocks), parts.head.in_features)


def test_at_first_nothing_is_changed(world: Anatomy) -> None:
    h = torch.randn(3, 5, world.head.in_features, generator=torch.Generator().manual_seed(0))
    for layer in range(len(world.blocks)):
        assert torch.equal(identity(world).apply(layer, h), h)


def test_a_translator_is_affine_and_the_last_layer_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    translators = Translators(torch.randn(2, 4, 4, generator=generator), torch.randn(2, 4, generator=generator))
    h = torch.randn(3, 4, generator=generator)
    expected = h + h @ translators.weight[1].T + translators.bias[1]
    torch.testing.assert_close(translators.apply(1, h), expected)
    assert torch.equal(translators.apply(2, h), h)
    assert translators.apply(1, h.bfloat16()).dtype == torch.bfloat16


def test_the_loss_is_the_divergence_of_the_last_layer_from_each_before_it(world: Anatomy) -> None:
    batch, model = Texts().batch(0), world.model
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], output_hidden_states=True)
        final = hidden.logits[batch["attention_mask"].bool()].double().log_softmax(-1)
        # The last hidden state of the library is normed; it is no layer before the last.
        lenses = [world.head(world.final_norm(h))[batch["attention_mask"].bool()] for h in hidden.hidden_states[1:-1]]
        expected = [(final.exp() * (final - lens.double().log_softmax(-1))).sum(-1).mean() for lens in lenses]
        found = mean_divergence(world, identity(world), batch)
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_training_brings_the_lens_closer_to_the_model(world: Anatomy, tmp_path: Path) -> None:
    trained = train(world, tmp_path)
    with torch.no_grad():
        before, after = (mean_divergence(world, t, Texts().batch(99)) for t in (identity(world), trained))
    assert float(after) < 0.95 * float(before)
    assert not trained.weight.requires_grad


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gemma2"])
def test_models_with_other_parts_are_trained_as_well(name: str, tmp_path: Path) -> None:
    parts = anatomy(instantiate(name, seed=0, device="cpu"))
    trained = train(parts, tmp_path, steps=2)
    assert bool((trained.weight.abs().amax((1, 2)) > 0).all())


def test_interrupted_and_resumed_it_ends_bit_for_bit_the_same(world: Anatomy, tmp_path: Path) -> None:
    whole = train(world, tmp_path / "whole")
    asked = iter([False, False, False, True])
    with pytest.raises(Preempted, match="stopped after step 3 of 6"):
        train(world, tmp_path / "cut", should_stop=lambda: next(asked))
    resumed = train(world, tmp_path / "cut")
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_the_model_is_as_before_also_when_stopped(tmp_path: Path) -> None:
    parts = anatomy(instantiate("tiny-qwen2", seed=0, device="cpu"))
    parts.model.requires_grad_(True)
    parts.final_norm.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in parts.model.named_parameters()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts.model.modules()]
    train(parts, tmp_path / "whole", steps=1)
    with pytest.raises(Preempted):
        train(parts, tmp_path / "cut", should_stop=lambda: True)
    for name, parameter in parts.model.named_parameters():
        value, required = before[name]
        assert torch.equal(parameter, value), name
        assert parameter.requires_grad == required, name
        assert parameter.grad is None, name
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts.model.modules()]
    assert not parts.model.training


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    translators = Translators(torch.randn(2, 4, 4), torch.randn(2, 4))
    translators.save(tmp_path / "translators.safetensors")
    found = Translators.load(tmp_path / "translators.safetensors").to("cpu")
    assert torch.equal(found.weight, translators.weight)
    assert torch.equal(found.bias, translators.bias)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"nothing of the kind")
    for name in ("other", "missing"):
        with pytest.raises(
            ModelError, match=rf"translators of the tuned lens cannot be read; got .*{name}.*; valid: saf"
        ):
            Translators.load(tmp_path / name)


def test_a_model_of_one_block_has_nothing_to_translate(world: Anatomy, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to translate; got '1 block'; valid: two blocks or more"):
        train(replace(world, blocks=world.blocks[:1]), tmp_path)
