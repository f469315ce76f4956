"""What a rank-mechanism study may set."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nullarm.protocols.rank_mechanism.policy import AllocationPolicy
from nullarm.study.spec import Strict
from nullarm.training.settings import TrainSettings

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LEFT_OUT = {
    "model": "named by the content of its files, among the cell's inputs",
    "task": "named by its content, among the cell's inputs",
    "evaluation_batch_size": "moves results by rounding only; declare a batch size that matters in the task",
    "training.checkpoint_every": "where a cell can go on, not what it computes",
    "training.keep_checkpoints": "the same",
    "training.gradient_checkpointing": "recomputes what it would have kept",
}
"""Parameters outside of a cell's identity, and why."""


class Gate(Strict):
    """What the probe must reach on the dev split: an undertrained probe says nothing about where ranks are needed."""

    metric: str = "accuracy"
    """A metric of the task."""
    min_value: float
    """Least value; below it the study stops with UNDERTRAINED."""


class RankMechanismParameters(Strict):
    """Parameters of protocol `rank_mechanism`."""

    model: str
    """`builtin:world`, a directory, or a hub id `org/name@revision`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights; LoRA parameters are trained in fp32."""
    task: dict[str, Any]
    """`kind` and the settings of the task (world_relations, planted, gsm8k, glue, jsonl)."""
    target_modules: tuple[str, ...] = Field(default=PROJECTIONS, min_length=1)
    """Last names of the adapted projections."""
    probe_rank: int = Field(ge=1)
    """Rank of the probe in every module."""
    alpha: float = Field(gt=0)
    """LoRA α."""
    alpha_rule: Literal["fixed", "alpha=r", "rslora"] = "fixed"
    """One rule for all arms: α as given (scale α/r), α = r (scale 1), or α/√r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout."""
    training: TrainSettings
    """How every arm is trained."""
    train_items: int | None = Field(default=None, ge=1)
    """Training items, from the front of the split; all when left out."""
    evaluation_batch_size: int = Field(default=64, ge=1)
    """Rows of a forward pass in evaluation."""
    gate: Gate | None = None
    """The probe gate; none when left out."""
    allocation: AllocationPolicy = AllocationPolicy()
    """How spectra become ranks."""
    cross_fit: bool = False
    """Retrain each seed with the audit of the next one, so that a map is never tested on the seed it was read from."""

    @model_validator(mode="after")
    def _ranks_divide_the_probes(self) -> RankMechanismParameters:
        ladder = [rank for rank in self.allocation.allowed_ranks if rank <= self.probe_rank]
        if not ladder:
            raise ValueError(f"allocation.allowed_ranks has no rank up to probe_rank {self.probe_rank}")
        if odd := [rank for rank in ladder if self.probe_rank % rank]:
            divisors = [n for n in range(1, self.probe_rank + 1) if self.probe_rank % n == 0]
            raise ValueError(
                f"allocation.allowed_ranks: {odd[0]} does not divide probe_rank {self.probe_rank}; valid: {divisors}"
            )
        return self
