"""Changes a model undergoes while it trains, each undone on leaving the `with`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nullarm.errors import StudyError

_ACCELERATE_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""Attributes that `Accelerator.prepare_model` leaves on a model; with them a second run would not be prepared."""


@contextmanager
def training_mode(model: torch.nn.Module, *, gradient_checkpointing: bool) -> Iterator[None]:
    """Dropout on, no key/value cache, activations recomputed if asked for.

    Raises:
        StudyError: The model offers no gradient checkpointing.
    """
    were_training = [(module, module.training) for module in model.modules()]
    accelerate_marks = {name: vars(model)[name] for name in _ACCELERATE_MARKS if name in vars(model)}
    model.train()
    try:
        with _without_cache(model), _checkpointed_gradients(model, wanted=gradient_checkpointing):
            yield
    finally:
        for module, was_training in were_training:
            module.training = was_training
        for name in _ACCELERATE_MARKS:
            vars(model).pop(name, None)
        vars(model).update(accelerate_marks)


@contextmanager
def _without_cache(model: torch.nn.Module) -> Iterator[None]:
    """Transformers fill a key/value cache in training, too, unless the configuration says no."""
    config = getattr(model, "config", None)
    if not getattr(config, "use_cache", False):
        yield
        return
    config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        config.use_cache = True  # type: ignore[union-attr]


@contextmanager
def _checkpointed_gradients(model: torch.nn.Module, *, wanted: bool) -> Iterator[None]:
    already = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if not wanted or already:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise StudyError(
            f"{type(model).__name__} offers no gradient checkpointing",
            next_command="set train.gradient_checkpointing to false",
        )
    # The reentrant form finds no gradient where the inputs are frozen, as they are under LoRA.
    _switch(model, "enable")({"use_reentrant": False})
    try:
        yield
    finally:
        _switch(model, "disable")()


def _switch(model: torch.nn.Module, which: str) -> Callable[..., None]:
    """Recent transformers call it activation checkpointing and warn at the old name."""
    renamed: Callable[..., None] | None = getattr(model, f"activation_checkpointing_{which}", None)
    return renamed or getattr(model, f"gradient_checkpointing_{which}")
