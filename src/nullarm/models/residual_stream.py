"""The residual stream of a causal LM: read, forced, edited, and passed through another model's blocks.

A layer is the number of a block, and stands for the residual stream behind it; layer −1 is what enters the first block.
Layer ℓ has index ℓ + 1 in a stream of shape `[layers + 1, batch, position, d_model]`.

Everything is done by hooks on the blocks and inside `with`: afterwards the model is what it was, also after an
exception. Batches are padded on the right and run without a mask: attention is causal, so no valid position sees the
padding, and what stands at padding is for the caller to leave out. The model has to be in evaluation mode.

Changes compose by being entered from the outside in: first `blocks_from`, then `edited`, then `residual_stream`, which
reads what the edits made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy

Edit = Callable[[Tensor], Tensor]
"""Maps hidden states `[batch, position, d_model]` to those that go on in their place."""

GIVEN_BY_TRUNK = ("rope_parameters", "layer_types", "sliding_window", "_attn_implementation")
"""Settings by which a trunk makes the position embeddings and masks that its blocks are given."""


def residual_stream(anatomy: Anatomy, inputs_embeds: Tensor) -> Tensor:
    """The input of the first block and the output of every block, before the final norm.

    Args:
        anatomy: The model.
        inputs_embeds: `[batch, position, d_model]`, output of an embedding module, this model's or another's.

    Returns:
        `[layers + 1, batch, position, d_model]`, in the dtype and on the device of `inputs_embeds`, without gradient.
        Index 0 is the input of block 0 (behind position embeddings where the model adds any), index k + 1 the output of
        block k.
    """
    return _stream(anatomy, inputs_embeds)


def forced_outputs(anatomy: Anatomy, residuals: Tensor, inputs_embeds: Tensor) -> Tensor:
    """As `residual_stream`, with block k working on `residuals[k]` in place of what the blocks before it made.

    Index k + 1 is this model's block k applied to `residuals[k]`; index 0 is this call's own input of block 0.

    Args:
        anatomy: The model.
        residuals: `[layers + 1, batch, position, d_model]`, as `residual_stream` gives them for a model of this shape.
        inputs_embeds: `[batch, position, d_model]`.

    Raises:
        ModelError: The residuals have another shape.
    """
    shape = (len(anatomy.blocks) + 1, *inputs_embeds.shape)
    if residuals.shape != shape:
        raise ModelError("the residuals are not of this model's shape", value=tuple(residuals.shape), valid=[shape])
    return _stream(anatomy, inputs_embeds, forced=residuals)


@contextmanager
def edited(anatomy: Anatomy, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Within, each edit changes the residual stream of its layer, and later layers see the change.

    Gradients are the caller's to allow or not.

    Args:
        anatomy: The model.
        edits: By layer; −1 is the input of block 0.

    Raises:
        ModelError: There is no such layer.
    """
    _check_layers(edits, range(-1, len(anatomy.blocks)))
    with ExitStack() as hooks:
        for layer, edit in edits.items():
            hook = _on_input(anatomy.blocks[0], edit) if layer < 0 else _on_output(anatomy.blocks[layer], edit)
            hooks.enter_context(hook)
        yield


@contextmanager
def blocks_from(anatomy: Anatomy, other: Anatomy, layers: Iterable[int]) -> Iterator[None]:
    """Within, blocks of another model stand in for this model's blocks of the same number.

    Args:
        anatomy: The model.
        other: A model of the same class and width, on the same device, that rotates and masks positions alike.
        layers: Numbers of the blocks.

    Raises:
        ModelError: There is no such layer, or a block of the other model would be given what it was not made for.
    """
    wanted = set(layers)
    _check_layers(wanted, range(min(len(anatomy.blocks), len(other.blocks))))
    _check_exchangeable(anatomy, other)
    own = {layer: anatomy.blocks[layer] for layer in wanted}
    try:
        for layer in own:
            anatomy.blocks[layer] = other.blocks[layer]
        yield
    finally:
        for layer, block in own.items():
            anatomy.blocks[layer] = block


def _stream(anatomy: Anatomy, inputs_embeds: Tensor, forced: Tensor | None = None) -> Tensor:
    blocks = anatomy.blocks
    stream = inputs_embeds.new_empty(len(blocks) + 1, *inputs_embeds.shape)
    with torch.no_grad(), ExitStack() as hooks:
        hooks.enter_context(_on_input(blocks[0], _copy_into(stream[0])))
        for k, block in enumerate(blocks):
            if forced is not None:
                hooks.enter_context(_on_input(block, _in_place_of(forced[k])))
            hooks.enter_context(_on_output(block, _copy_into(stream[k + 1])))
        anatomy.trunk(inputs_embeds=inputs_embeds, use_cache=False)
    return stream


def _copy_into(place: Tensor) -> Callable[[Tensor], None]:
    def look(hidden: Tensor) -> None:
        place.copy_(hidden)

    return look


def _in_place_of(replacement: Tensor) -> Edit:
    return lambda hidden: replacement.to(hidden)


def _on_input(block: nn.Module, look: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Show the hidden states a block is given to `look`, and put what it returns, if anything, in their place."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        changed = look(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(block: nn.Module, look: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Show the hidden states a block returns to `look`, and put what it returns, if anything, in their place."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        whole = isinstance(output, Tensor)
        changed = look(output if whole else output[0])
        return changed if changed is None or whole else (changed, *output[1:])

    return block.register_forward_hook(hook)


def _check_layers(layers: Iterable[int], valid: range) -> None:
    if unknown := sorted(set(layers) - set(valid)):
        raise ModelError("there is no such layer", value=unknown, valid=f"{valid.start} to {valid.stop - 1}")


def _check_exchangeable(anatomy: Anatomy, other: Anatomy) -> None:
    ours, theirs = anatomy.model, other.model
    if type(ours) is not type(theirs) or ours.config.hidden_size != theirs.config.hidden_size:
        raise ModelError(
            "blocks cannot be exchanged between models of different class or width",
            value=f"{type(theirs).__name__}, width {theirs.config.hidden_size}",
            valid=f"{type(ours).__name__}, width {ours.config.hidden_size}",
        )
    for name in GIVEN_BY_TRUNK:
        mine, foreign = getattr(ours.config, name, None), getattr(theirs.config, name, None)
        if mine != foreign:
            raise ModelError(
                f"blocks cannot be exchanged between models whose {name} differs", value=foreign, valid=str(mine)
            )
