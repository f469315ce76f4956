"""Arm `eva`: ranks and initial rows from the activations' variance (Paischer et al. 2024), as PEFT allocates them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from nullarm.errors import DatasetError, InvalidResult, StudyError
from nullarm.protocols.rank_mechanism.lora import (
    AlphaRule,
    TaskType,
    adapted_layers,
    exactly,
    inject_lora,
    set_rows,
)
from nullarm.protocols.rank_mechanism.ranks import ModuleShape
from nullarm.training.batches import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel

Batch = dict[str, torch.Tensor]
Components = dict[str, torch.Tensor]
"""Right singular vectors [rank, in_features] of each module's inputs; the rank is what EVA gave the module."""

MOST_ROUNDS = 8
"""Allocations tried on the way to the parameter target."""

MOST_PASSES = 400
"""Forward passes within which the singular vectors of one allocation must have settled."""

RHO = 2.0
"""A module may get up to rho times the mean rank: PEFT's default."""


def build_eva(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    *,
    modules: Sequence[ModuleShape],
    target_parameters: int,
    alpha_rule: AlphaRule,
    alpha: float,
    dropout: float,
    task_type: TaskType,
) -> PeftModel:
    """LoRA with EVA's ranks and rows, its parameter count as near `target_parameters` as EVA's budgets come.

    EVA's budget is a number of ranks, and ranks cost more in larger modules; so budgets are tried until the count
    is right or does not come nearer. `final_ranks` says what was reached.

    Args:
        model: Changed in place.
        batches: Training batches with `labels`; of a causal model, only positions that carry loss are looked at.
        modules: All target modules.
        target_parameters: LoRA parameters, Σ r · (in + out).
        alpha_rule: As in the other arms.
        alpha: As in the other arms.
        dropout: As in the other arms.
        task_type: PEFT's.

    Raises:
        StudyError: The target is below rank one for each module.
        DatasetError: Too few batches hold as many target tokens as singular vectors are wanted.
        InvalidResult: The vectors did not settle.
    """
    if target_parameters < sum(module.cost for module in modules):
        raise StudyError(
            "the eva arm cannot have fewer parameters than rank 1 everywhere",
            value=target_parameters,
            valid=f"from {sum(module.cost for module in modules)}",
        )
    components = _nearest_allocation(model, batches, modules, target_parameters)
    ranks = {module.name: components[module.name].shape[0] for module in modules}
    built = inject_lora(model, ranks=ranks, alpha_rule=alpha_rule, alpha=alpha, dropout=dropout, task_type=task_type)
    for name, layer in adapted_layers(built).items():
        set_rows(layer, components[name])
    return built


def _nearest_allocation(
    model: torch.nn.Module, batches: Sequence[Batch], modules: Sequence[ModuleShape], target: int
) -> Components:
    """Step from budget to budget by the parameters still missing; the best allocation seen."""
    mean_cost = sum(module.cost for module in modules) / len(modules)
    tried: dict[int, tuple[int, Components]] = {}
    budget = round(target / mean_cost)
    while budget not in tried and len(tried) < MOST_ROUNDS:
        components = _allocate(model, batches, modules, budget)
        parameters = sum(components[module.name].shape[0] * module.cost for module in modules)
        tried[budget] = (abs(parameters - target), components)
        budget = max(len(modules), budget + round((target - parameters) / mean_cost))
    return min(tried.values(), key=lambda entry: entry[0])[1]


def _allocate(
    model: torch.nn.Module, batches: Sequence[Batch], modules: Sequence[ModuleShape], budget: int
) -> Components:
    """PEFT's allocation of `budget` ranks over the modules."""
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    each, more = divmod(budget, len(modules))
    start = {module.name: each + (i < more) for i, module in enumerate(modules)}
    largest = max(start.values())
    rho = max(1.0, min(RHO, min(module.in_features for module in modules) / largest))
    config = LoraConfig(
        r=each,
        rank_pattern={exactly(name): rank for name, rank in start.items()},
        target_modules=list(start),
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, use_label_mask=batches[0]["labels"].ndim == 2),
    )
    enough = [batch for batch in batches if _target_tokens(batch) >= round(largest * rho)]
    if len(enough) < 2:
        raise DatasetError(
            "the eva arm needs at least 2 batches with as many target tokens as singular vectors",
            value=sorted((_target_tokens(batch) for batch in batches), reverse=True)[:2],
            valid=f"from {round(largest * rho)} target tokens",
            next_command="give it larger batches",
        )
    with _as_before(model), torch.random.fork_rng(devices=[]):
        found: Components = get_eva_state_dict(
            model, enough, peft_config=config, forward_fn=_bounded_forward(), show_progress_bar=False
        )
    return found


def _bounded_forward() -> Any:
    """PEFT passes over the batches until the vectors settle, for ever if they do not."""
    passes = iter(range(MOST_PASSES))

    def forward(model: torch.nn.Module, batch: Batch) -> Any:
        if next(passes, None) is None:
            raise InvalidResult(
                f"the eva arm's singular vectors have not settled in {MOST_PASSES} passes",
                next_command="give it more or larger batches",
            )
        return model(**batch)

    return forward


@contextmanager
def _as_before(model: torch.nn.Module) -> Iterator[None]:
    """Modes and hooks as they were, even if EVA ends with an error."""
    before = [(module, module.training, OrderedDict(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        for module, was_training, hooks in before:
            module.training = was_training
            module._forward_hooks = hooks


def _target_tokens(batch: Batch) -> int:
    """Positions EVA looks at: those that carry loss, or, of a classifier, all that are attended to."""
    attended = batch["attention_mask"].bool()
    return int(((batch["labels"] != IGNORED) & attended if batch["labels"].ndim == 2 else attended).sum())
