"""Arm `adalora`: ranks pruned by importance while training (Zhang et al. 2023), through PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nullarm.errors import AdapterError, StudyError
from nullarm.protocols.rank_mechanism.lora import (
    ADAPTER,
    AlphaRule,
    TaskType,
    adapted_layers,
    final_ranks,
    inject_lora,
    kept_triplets,
    module_generator,
    scale_of,
    set_rows,
    train_heads_in_fp32,
)
from nullarm.protocols.rank_mechanism.ranks import ModuleShape, lora_parameters

if TYPE_CHECKING:
    from peft import PeftModel

START = 1.5
"""Ranks at the start, relative to the target: the ratio of the paper."""

WARM_UP, SETTLE = 0.1, 0.3
"""Shares of the steps before the first pruning, and after the last."""

FEWEST_STEPS = 10
INIT_STD = 0.02
"""Of A and B, as PEFT draws them; E starts at zero."""


def build_adalora(
    model: torch.nn.Module,
    *,
    modules: Sequence[ModuleShape],
    target_parameters: int,
    total_steps: int,
    alpha_rule: AlphaRule,
    alpha: float,
    dropout: float,
    seed: int,
    task_type: TaskType,
) -> tuple[PeftModel, AdaLoraHook]:
    """AdaLoRA that ends as near `target_parameters` as its pruning comes, and the hook that prunes.

    While training, its scale is the same for all modules and steps: that of the alpha rule at the initial rank. Its
    training loss contains the orthogonality penalty; the losses of other arms do not compare with it.

    Args:
        model: Changed in place.
        modules: All target modules.
        target_parameters: LoRA parameters at the end, Σ r · (in + out); the r singular values belong to A.
        total_steps: Optimiser steps of the run.
        alpha_rule: As in the other arms.
        alpha: As in the other arms.
        dropout: As in the other arms.
        seed: Of the initialisation, per module.
        task_type: PEFT's.

    Returns:
        The model, and the `extra_step` of `nullarm.training.loop.fit`; its `as_lora` gives the result.

    Raises:
        StudyError: Too few steps to prune in, or too few parameters.
        AdapterError: PEFT adapted other modules than were asked for.
    """
    from peft import AdaLoraConfig, get_peft_model

    if total_steps < FEWEST_STEPS:
        raise StudyError("the adalora arm has too few steps", value=total_steps, valid=f"from {FEWEST_STEPS}")
    mean_rank = target_parameters / sum(module.cost for module in modules)
    if round(mean_rank * len(modules)) < 1:
        raise StudyError("the adalora arm has too few parameters for any rank", value=target_parameters)
    init_rank = max(math.ceil(START * mean_rank), math.floor(mean_rank) + 1)
    config = AdaLoraConfig(
        init_r=init_rank,
        target_r=max(1, round(mean_rank)),
        tinit=int(WARM_UP * total_steps),
        tfinal=int(SETTLE * total_steps),
        total_step=total_steps,
        # PEFT multiplies by lora_alpha and divides by the initial rank.
        lora_alpha=scale_of(alpha_rule, alpha, init_rank) * init_rank,
        lora_dropout=dropout,
        target_modules=[module.name for module in modules],
        task_type=task_type,
    )
    with torch.random.fork_rng(devices=[]):
        built = get_peft_model(model, config)
    train_heads_in_fp32(built)
    layers = adapted_layers(built)
    if layers.keys() != {module.name for module in modules}:
        raise AdapterError("PEFT adapted other modules than were asked for", value=sorted(layers)[:3])
    for name, layer in layers.items():
        _draw(layer, module_generator(seed, name))
    inject = partial(inject_lora, alpha_rule=alpha_rule, alpha=alpha, dropout=dropout, task_type=task_type)
    return built, AdaLoraHook(built, modules, target_parameters, inject)


class AdaLoraHook:
    """Prunes after each optimiser step; at the last pruning the budget is the one nearest the parameter target."""

    def __init__(
        self,
        model: PeftModel,
        modules: Sequence[ModuleShape],
        target_parameters: int,
        inject: Callable[..., PeftModel],
    ) -> None:
        self._model, self._modules, self._target, self._inject = model, modules, target_parameters, inject
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config[ADAPTER]
        self._allocator: Any = self._tuner.rankallocator
        # PEFT knows whole mean ranks only; its allocator takes any number.
        mean_cost = sum(module.cost for module in modules) / len(modules)
        self._allocator.target_bgt = max(1, round(target_parameters / mean_cost))

    def __call__(self, step: int) -> None:
        """Update importances and prune, after optimiser step `step`, counted from 1, with its gradients."""
        if step == self._config.total_step - self._config.tfinal:
            self._allocator.target_bgt = self._nearest_budget()
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """Smoothed importances and their uncertainties, and the triplets kept."""
        tensors = {f"importance/{name}": tensor for name, tensor in self._allocator.exp_avg_ipt.items()}
        tensors |= {f"uncertainty/{name}": tensor for name, tensor in self._allocator.exp_avg_unc.items()}
        kept = self._config.rank_pattern or {}
        return tensors | {f"kept/{name}": torch.tensor(mask, dtype=torch.bool) for name, mask in kept.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state`."""
        device = next(self._model.parameters()).device
        parts: dict[str, dict[str, torch.Tensor]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self._allocator.exp_avg_ipt = {name: tensor.to(device) for name, tensor in parts["importance"].items()}
        self._allocator.exp_avg_unc = {name: tensor.to(device) for name, tensor in parts["uncertainty"].items()}
        # Recomputed each step; the allocator asks only whether a name is there.
        self._allocator.ipt = dict(self._allocator.exp_avg_ipt)
        self._config.rank_pattern = {name: mask.tolist() for name, mask in parts["kept"].items()} or None

    def as_lora(self) -> PeftModel:
        """The trained model with a plain LoRA adapter of the ranks kept, in the place of AdaLoRA's.

        Singular values go into A, the difference of scales into B; so it can be audited, merged and loaded as any other
        arm's (PEFT 0.21 warns about its own AdaLoRA files on loading).
        """
        kept = kept_triplets(self._model)
        factors = {name: _factors(layer, kept[name]) for name, layer in adapted_layers(self._model).items()}
        plain = self._inject(self._tuner.unload(), ranks={name: sum(mask) for name, mask in kept.items()})
        for name, layer in adapted_layers(plain).items():
            rows, columns = factors[name]
            set_rows(layer, rows)
            with torch.no_grad():
                layer.lora_B[ADAPTER].weight.copy_(columns / layer.scaling[ADAPTER])
        return plain

    def _nearest_budget(self) -> int:
        """By bisection: a larger budget keeps all that a smaller one keeps."""
        low, high = 0, int(self._allocator.init_bgt) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._parameters_at(middle) <= self._target else (low, middle)
        return min((low, high), key=lambda budget: abs(self._parameters_at(budget) - self._target))

    def _parameters_at(self, budget: int) -> int:
        """LoRA parameters that pruning to `budget` would leave; nothing is pruned."""
        singular_values = [layer.lora_E[ADAPTER] for layer in adapted_layers(self._model).values()]
        before = [values.detach().clone() for values in singular_values], self._config.rank_pattern
        try:
            self._config.rank_pattern = self._allocator.mask_to_budget(self._tuner.model, budget)
            return lora_parameters(final_ranks(self._model, self._modules), self._modules)
        finally:
            with torch.no_grad():
                for values, old in zip(singular_values, before[0], strict=True):
                    values.copy_(old)
            self._config.rank_pattern = before[1]


def _factors(layer: Any, kept: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """E A [rank, in] and s B [out, rank] of the triplets kept, s being AdaLoRA's scale."""
    values = layer.lora_E[ADAPTER].detach()
    # PEFT adds 1e-5 to the rank it divides by.
    scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].item() + 1e-5)
    return (layer.lora_A[ADAPTER].detach() * values)[kept], layer.lora_B[ADAPTER].detach()[:, kept] * scale


def _draw(layer: Any, generator: torch.Generator) -> None:
    with torch.no_grad():
        for part in (layer.lora_A, layer.lora_B):
            weight = part[ADAPTER]
            weight.copy_(INIT_STD * torch.randn(weight.shape, generator=generator))
        layer.lora_E[ADAPTER].zero_()
