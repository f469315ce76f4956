"""What a run needs before its first step: parameters to train, an accelerator, an optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from nullarm.errors import ModelError, PreflightError
from nullarm.training.settings import Precision, TrainSettings


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require a gradient, by name.

    Raises:
        ModelError: There is none, or one is not fp32.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ModelError(f"{type(model).__name__} has no trainable parameter")
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ModelError(
                f"trainable parameter {name} is not fp32",
                value=str(parameter.dtype),
                valid="torch.float32; train.precision sets the type of the arithmetic",
            )
    return parameters


def open_accelerator(precision: Precision) -> Accelerator:
    """An accelerator for this run's precision, in a process that may have run others before.

    Raises:
        PreflightError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise PreflightError("train.precision fp16 needs a GPU", value=precision, valid="fp32, bf16")
    mixed_precision = "no" if precision == "fp32" else precision
    # accelerate's state is one per process and would keep the first run's precision.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    # One step, whatever the environment says: the loop weighs micro-batches itself, by their target tokens.
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision=mixed_precision, gradient_accumulation_plugin=once)


def adamw(parameters: Mapping[str, torch.nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019); vectors do not decay."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [(matrices, settings.weight_decay), (vectors, 0.0)]
    return torch.optim.AdamW(
        [{"params": chosen, "weight_decay": decay} for chosen, decay in groups if chosen],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        fused=True,
    )


def copy_into(parameters: Mapping[str, torch.nn.Parameter], saved: Mapping[str, torch.Tensor]) -> None:
    """Give `parameters` the values of a checkpoint.

    Raises:
        ModelError: Names or shapes differ.
    """
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise ModelError(
            "the checkpoint's parameters are not this model's",
            value=differing[:3],
            next_command="resume with the model the run was started with, or remove its checkpoints",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
