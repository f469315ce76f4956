"""The knobs of a training run, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from nullarm.errors import StudyError

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and how safely a model is trained.

    Attributes:
        steps: Optimiser steps.
        batch_size: Items per forward pass and process.
        learning_rate: Peak learning rate of AdamW.
        beta2: AdamW's decay of the second moment; 0.95 forgets faster, for runs of a few hundred steps.
        weight_decay: Decoupled weight decay of matrices; vectors (biases, norms) have none.
        warmup_ratio: Share of the steps over which the rate rises linearly from 0, in [0, 1).
        schedule: What the rate does after the warm-up; `linear` and `cosine` fall to 0.
        clip_norm: Largest gradient norm; 0 leaves gradients as they are.
        precision: Of the arithmetic; trainable parameters stay fp32.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        gradient_accumulation: Forward passes per optimiser step.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Valid checkpoints kept.

    Raises:
        StudyError: A knob is out of its range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup_ratio: float = 0.0
    schedule: Schedule = "linear"
    clip_norm: float = 1.0
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    gradient_accumulation: int = 1
    checkpoint_every: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number from 1")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a number above 0")
        for name in ("weight_decay", "clip_norm"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a number from 0")
        _require(0 < self.beta2 < 1, "beta2", self.beta2, "between 0 and 1")
        _require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "from 0 to below 1")
        _require(self.schedule in get_args(Schedule), "schedule", self.schedule, ", ".join(get_args(Schedule)))
        _require(self.precision in get_args(Precision), "precision", self.precision, ", ".join(get_args(Precision)))

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0.

        A function of the step alone, so a resumed run needs no scheduler state.
        """
        warmup_steps = math.ceil(self.warmup_ratio * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        if self.schedule == "linear":
            return self.learning_rate * (1 - progress)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate


def _require(holds: bool, name: str, value: object, valid: str) -> None:
    if not holds:
        raise StudyError(f"train.{name} is out of range", value=value, valid=valid)
