from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.models.instantiate import instantiate
from nullarm.models.residual_stream import blocks_from, edited, forced_outputs, residual_stream
from nullarm.models.shapes import SHAPES

TINY = [name for name in SHAPES if name.startswith("tiny-")]
IDS = torch.randint(704, (3, 24), generator=torch.Generator().manual_seed(0))
"""Longer than the sliding windows of 16."""


def make(name: str, seed: int = 0) -> Anatomy:
    return anatomy(instantiate(name, seed=seed, device="cpu"))


def embed(parts: Anatomy, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = parts.embedding(ids)
        return embeddings


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def state(parts: Anatomy) -> list[Any]:
    """All that a change could leave behind: modules, their attributes and hooks, and the values of tensors."""
    modules = dict(parts.model.named_modules())
    tensors = [*parts.model.named_parameters(), *parts.model.named_buffers()]
    return [
        {name: id(module) for name, module in modules.items()},
        {name: module.training for name, module in modules.items()},
        {name: {k: repr(v) for k, v in vars(module).items() if "hook" in k} for name, module in modules.items()},
        {name: sorted(vars(module)) for name, module in modules.items()},
        {name: (id(tensor), tensor.detach().numpy().tobytes()) for name, tensor in tensors},
    ]


@contextmanager
def untouched(*models: Anatomy) -> Iterator[None]:
    before = [state(parts) for parts in models]
    yield
    assert [state(parts) for parts in models] == before


@pytest.fixture(params=TINY)
def parts(request: pytest.FixtureRequest) -> Anatomy:
    return make(request.param)


def test_the_stream_is_that_of_the_library_before_the_final_norm(parts: Anatomy) -> None:
    stream = residual_stream(parts, embed(parts))
    with torch.no_grad():
        expected = parts.model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
        close(parts.final_norm(stream[-1]), expected[-1])
    assert stream.shape == (len(expected), *IDS.shape, 32)
    for ours, theirs in zip(stream[:-1], expected[:-1], strict=True):
        close(ours, theirs)
    assert not stream.requires_grad


def test_padding_on_the_right_changes_nothing_before_it(parts: Anatomy) -> None:
    short = residual_stream(parts, embed(parts, IDS[:, :17]))
    close(residual_stream(parts, embed(parts))[:, :, :17], short)


def test_a_model_forced_on_its_own_stream_repeats_it(parts: Anatomy) -> None:
    embeddings = embed(parts)
    stream = residual_stream(parts, embeddings)
    assert torch.equal(forced_outputs(parts, stream, embeddings), stream)


def test_a_changed_block_shows_at_its_own_layer_only_when_forced(parts: Anatomy) -> None:
    embeddings = embed(parts)
    stream = residual_stream(parts, embeddings)
    with torch.no_grad():
        for parameter in parts.blocks[0].parameters():
            parameter.mul_(1.1)
    free = residual_stream(parts, embeddings)
    forced = forced_outputs(parts, stream, embeddings)
    differs = [[not torch.equal(a, b) for a, b in zip(x, stream, strict=True)] for x in (free, forced)]
    assert differs == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_an_edit_goes_on_from_its_layer(parts: Anatomy, layer: int) -> None:
    embeddings = embed(parts)
    plain = residual_stream(parts, embeddings)
    with untouched(parts), edited(parts, {layer: lambda hidden: hidden + 1.0}):
        changed = residual_stream(parts, embeddings)
    assert torch.equal(changed[: layer + 1], plain[: layer + 1])
    close(changed[layer + 1], plain[layer + 1] + 1.0)
    assert all(not torch.allclose(a, b) for a, b in zip(changed[layer + 2 :], plain[layer + 2 :], strict=True))


def test_edits_reach_the_logits_and_nothing_after_them(parts: Anatomy) -> None:
    with torch.no_grad():
        before = parts.model(input_ids=IDS).logits
        with edited(parts, {-1: torch.zeros_like, 1: lambda hidden: hidden.flip(-1)}):
            assert not torch.allclose(parts.model(input_ids=IDS).logits, before)
        assert torch.equal(parts.model(input_ids=IDS).logits, before)


def test_blocks_of_another_model_stand_in(parts: Anatomy) -> None:
    other = anatomy(type(parts.model)(parts.model.config).eval())
    embeddings = embed(parts)
    plain = residual_stream(parts, embeddings)
    with untouched(parts, other):
        with blocks_from(parts, other, [1]):
            second = residual_stream(parts, embeddings)
        with blocks_from(parts, other, range(2)):
            both = residual_stream(parts, embeddings)
    assert torch.equal(second[:2], plain[:2])
    assert torch.equal(second[2], forced_outputs(other, plain, embeddings)[2])
    with edited(other, {-1: lambda hidden: plain[0]}):  # GPT-2's position embeddings are no part of the blocks
        assert torch.equal(both, residual_stream(other, embeddings))


def test_reading_changes_nothing_in_the_model(parts: Anatomy) -> None:
    embeddings = embed(parts)
    with untouched(parts):
        stream = residual_stream(parts, embeddings)
        forced_outputs(parts, stream, embeddings)


def fail(hidden: Tensor) -> Tensor:
    raise RuntimeError("planned")


def test_nothing_is_left_after_a_hook_has_failed(parts: Anatomy) -> None:
    embeddings = embed(parts)
    stream = residual_stream(parts, embeddings)
    for layer in (-1, 0, 1):
        with untouched(parts), pytest.raises(RuntimeError, match="planned"), edited(parts, {layer: fail}):
            residual_stream(parts, embeddings)
        with untouched(parts), pytest.raises(RuntimeError, match="planned"), edited(parts, {layer: fail}):
            forced_outputs(parts, stream, embeddings)


def test_nothing_is_left_after_an_exception_inside() -> None:
    parts, other = make("tiny-mistral"), make("tiny-mistral", seed=1)
    for change in (edited(parts, {0: fail, -1: fail}), blocks_from(parts, other, [0, 1])):
        with untouched(parts, other), pytest.raises(RuntimeError, match="planned"), change:
            raise RuntimeError("planned")


def test_the_check_of_the_state_sees_hooks_blocks_and_values() -> None:
    parts, other = make("tiny-llama"), make("tiny-llama", seed=1)
    with pytest.raises(AssertionError), untouched(parts):
        parts.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError), untouched(parts):
        parts.blocks[0] = other.blocks[0]
    with pytest.raises(AssertionError), untouched(parts), torch.no_grad():
        parts.head.weight[0, 0] += 1


class Beside(torch.nn.Module):
    """A block that returns a tuple, as those of some classes and versions of the library do."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, str]:
        return self.block(hidden_states, **kwargs), "beside"


class ByName(torch.nn.Module):
    """Gives a block its hidden states by name."""

    def __init__(self, block: Beside) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        hidden, beside = self.block(hidden_states=hidden_states, **kwargs)
        assert beside == "beside"
        return hidden  # type: ignore[no-any-return]


def test_blocks_may_return_tuples_and_be_given_their_input_by_name() -> None:
    parts = make("tiny-llama")
    embeddings = embed(parts)
    edits = [{-1: torch.cos}, {0: torch.cos}, {1: torch.cos}]
    expected = [residual_stream(parts, embeddings)]
    for edit in edits:
        with edited(parts, edit):
            expected.append(residual_stream(parts, embeddings))
    blocks = torch.nn.ModuleList(Beside(block) for block in parts.blocks)
    for k, block in enumerate(blocks):
        parts.blocks[k] = ByName(cast(Beside, block))
    otherwise = replace(parts, blocks=blocks)
    assert torch.equal(residual_stream(otherwise, embeddings), expected[0])
    assert torch.equal(forced_outputs(otherwise, expected[0], embeddings), expected[0])
    for edit, stream in zip(edits, expected[1:], strict=True):
        with edited(otherwise, edit):
            assert torch.equal(residual_stream(otherwise, embeddings), stream)


@pytest.mark.parametrize("layer", [-2, 2])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    parts = make("tiny-llama")
    with pytest.raises(ModelError, match=rf"no such layer; got \[{layer}\]; valid: -1 to 1"):
        edited(parts, {layer: torch.zeros_like}).__enter__()
    with pytest.raises(ModelError, match=rf"no such layer; got \[{layer}\]; valid: 0 to 1"):
        blocks_from(parts, parts, [layer]).__enter__()


def test_residuals_of_another_shape_are_refused() -> None:
    parts = make("tiny-llama")
    embeddings = embed(parts)
    with pytest.raises(ModelError, match=r"not of this model's shape; got \(2, 3, 24, 32\); valid: \(3, 3, 24, 32\)"):
        forced_outputs(parts, residual_stream(parts, embeddings)[:2], embeddings)


def test_blocks_that_do_not_belong_are_refused() -> None:
    parts = make("tiny-mistral")
    with pytest.raises(ModelError, match="class or width; got 'LlamaForCausalLM, width 32'; valid: MistralFor"):
        blocks_from(parts, make("tiny-llama"), [0]).__enter__()
    other = make("tiny-mistral")
    other.model.config.sliding_window = 8
    with pytest.raises(ModelError, match="whose sliding_window differs; got 8; valid: 16"):
        blocks_from(parts, other, [0]).__enter__()
