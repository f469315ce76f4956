"""The training loop: interrupted at any step and resumed, it ends bit for bit (on a CPU) where it would have ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from nullarm.errors import InvalidResult, Preempted
from nullarm.training import rng
from nullarm.training.batches import target_count
from nullarm.training.checkpoint import Checkpoints, Skipped, TrainState
from nullarm.training.mirror import Mirror, mirror_from_environment
from nullarm.training.modes import training_mode
from nullarm.training.prepare import adamw, copy_into, open_accelerator, trainable_parameters
from nullarm.training.settings import TrainSettings

Batch = dict[str, torch.Tensor]
LossFn = Callable[[Any, Batch], torch.Tensor]

FETCH_EVERY = 10
"""Steps between looks at the losses where looking waits for the GPU, or at the other processes."""


class BatchSource(Protocol):
    """Batches by number, see `nullarm.training.batches.Batches`."""

    def batch(self, index: int) -> Batch:
        """Batch `index`, on the CPU."""


class StepHook(Protocol):
    """Work after each optimiser step, with a state that checkpoints carry (AdaLoRA's rank allocation)."""

    def __call__(self, step: int) -> None:
        """Called after optimiser step `step`, counted from 1, while the gradients are still there."""

    def state(self) -> dict[str, torch.Tensor]:
        """What `restore` needs."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state`."""


@dataclass(frozen=True)
class FitResult:
    """What a finished run says.

    Attributes:
        losses: Mean loss per target token of each step, in order, those before a resume included.
        steps: Optimiser steps.
        resumed_from: Step of the checkpoint that this process started from, or None.
        tokens: Tokens seen, padding left out.
        seconds: Wall time in the loop, earlier attempts included up to their last checkpoint.
        skipped: Damaged checkpoints that were passed over.
    """

    losses: list[float]
    steps: int
    resumed_from: int | None
    tokens: int
    seconds: float
    skipped: tuple[Skipped, ...]


def model_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The loss a transformers model computes from its labels."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def fit(
    model: torch.nn.Module,
    batches: BatchSource,
    settings: TrainSettings,
    *,
    directory: Path,
    fingerprint: str,
    seed: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, float], None] | None = None,
    extra_step: StepHook | None = None,
    loss_fn: LossFn = model_loss,
) -> FitResult:
    """Train the trainable parameters of `model` in place, resuming from `directory` where it holds checkpoints.

    Where `NULLARM_MIRROR` is set, checkpoints are copied to S3 beside the training, and one there that is newer than
    all in `directory` is resumed from (`nullarm.training.mirror`).

    Global random generators are seeded inside and put back afterwards, as are modes and hooks of the model.

    Args:
        model: Its trainable parameters must be fp32; frozen ones are never touched, whatever their type.
        batches: Micro-batch `step * gradient_accumulation + k` is the k-th of optimiser step `step`.
        settings: The knobs.
        directory: Of the checkpoints.
        fingerprint: What this run is; a checkpoint of something else is refused.
        seed: Of dropout.
        should_stop: Asked at each step boundary.
        on_progress: Told (steps done, loss of the last of them), each step on a CPU, every tenth on a GPU.
        extra_step: See `StepHook`.
        loss_fn: Mean loss over the target tokens of a batch.

    Raises:
        Preempted: `should_stop` said so; a checkpoint of this very step is on disk.
        InvalidResult: The loss is NaN or infinite; the step is named and nothing of it is checkpointed.
        ModelError: Nothing to train, or a trainable parameter is not fp32.
        PreflightError: fp16 was asked for without a GPU.
        ForeignStudyError: `directory` holds checkpoints of something else.
        StorageError: A checkpoint could not be written; earlier ones are intact.
        UsageError: `NULLARM_MIRROR` names no bucket.
    """
    parameters = trainable_parameters(model)
    accelerator = open_accelerator(settings.precision)
    processes = "" if accelerator.num_processes == 1 else f"|{accelerator.num_processes} processes"
    fingerprint, keep = fingerprint + processes, settings.keep_checkpoints
    checkpoints = Checkpoints(directory, fingerprint=fingerprint, keep=keep)
    mirror = mirror_from_environment(fingerprint, keep=keep) if accelerator.is_main_process else None
    with (
        mirror or nullcontext(),
        training_mode(model, gradient_checkpointing=settings.gradient_checkpointing),
        rng.seeded(seed + accelerator.process_index, accelerator.device),
    ):
        run = _Run(model, parameters, batches, settings, accelerator, checkpoints, mirror, extra_step, loss_fn)
        resumed_from, skipped = run.resume()
        run.train(should_stop, on_progress)
        return FitResult(run.losses, settings.steps, resumed_from, run.tokens, run.seconds, skipped)


class _Run:
    """One process's run: what changes from step to step, and how it is saved and restored."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: dict[str, torch.nn.Parameter],
        batches: BatchSource,
        settings: TrainSettings,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        mirror: Mirror | None,
        hook: StepHook | None,
        loss_fn: LossFn,
    ) -> None:
        self._parameters, self._batches, self._settings = parameters, batches, settings
        self._accelerator, self._checkpoints, self._mirror = accelerator, checkpoints, mirror
        self._hook, self._loss_fn = hook, loss_fn
        self._model = accelerator.prepare_model(model)
        self._optimizer = accelerator.prepare_optimizer(adamw(parameters, settings))
        self._waits_for_device = accelerator.device.type != "cpu" or accelerator.num_processes > 1
        self._unread: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.tokens = 0
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._saved_step: int | None = None

    @property
    def seconds(self) -> float:
        """Wall time in the loop so far."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return len(self.losses) + len(self._unread)

    def train(self, should_stop: Callable[[], bool], on_progress: Callable[[int, float], None] | None) -> None:
        """Do the steps that are left."""
        while self.step < self._settings.steps:
            if self._agree_to_stop(should_stop):
                self._save()
                raise Preempted(
                    f"asked to stop; stopped after step {self.step} of {self._settings.steps}",
                    next_command="nullarm resume",
                )
            self._unread.append(self._do_step(self.step))
            checkpoint_due = self.step % self._settings.checkpoint_every == 0 or self.step == self._settings.steps
            if checkpoint_due or not self._waits_for_device or self.step % FETCH_EVERY == 0:
                self._read_losses()
                if on_progress and self._accelerator.is_main_process:
                    on_progress(self.step, self.losses[-1])
            if checkpoint_due:
                self._save()

    def _do_step(self, step: int) -> torch.Tensor:
        """One optimiser step; its mean loss per target token, as a tensor nobody has waited for."""
        accelerator, settings = self._accelerator, self._settings
        micro_batches = [self._batches.batch(index) for index in self._indices(step)]
        total = torch.zeros((), device=accelerator.device)
        for k, (batch, share) in enumerate(zip(micro_batches, self._shares(micro_batches), strict=True)):
            last = k == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                loss = self._loss_fn(self._model, _to_device(batch, accelerator.device)) * share
                # Gradients are averaged over processes, while shares add up to one over all of them.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
            self.tokens += _token_count(batch)
        accelerator.unscale_gradients()
        if settings.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), settings.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        self._optimizer.step()
        if self._hook is not None:
            self._hook(step + 1)
        self._optimizer.zero_grad()
        return total

    def _indices(self, step: int) -> range:
        """Numbers of this process's micro-batches."""
        per_process = self._settings.gradient_accumulation
        first = (step * self._accelerator.num_processes + self._accelerator.process_index) * per_process
        return range(first, first + per_process)

    def _shares(self, micro_batches: list[Batch]) -> list[float]:
        """Each micro-batch's share of the step's target tokens, so that the step's loss is a mean over tokens.

        A mean of micro-batch means would weigh the tokens of short micro-batches more.
        """
        if len(micro_batches) == self._accelerator.num_processes == 1:
            return [1.0]
        counts = [target_count(batch) for batch in micro_batches]
        total = sum(counts)
        if self._accelerator.num_processes > 1:
            total = int(self._accelerator.reduce(torch.tensor(total, device=self._accelerator.device)).item())
        return [count / total for count in counts]

    def _agree_to_stop(self, should_stop: Callable[[], bool]) -> bool:
        """Whether any process was asked to stop; with several, looked at every tenth step."""
        if self._accelerator.num_processes == 1:
            return should_stop()
        if self.step % FETCH_EVERY:
            return False
        asked = torch.tensor(int(should_stop()), device=self._accelerator.device)
        return bool(self._accelerator.reduce(asked).item())

    def _read_losses(self) -> None:
        """Move losses from the device to the list.

        Raises:
            InvalidResult: One is not finite.
        """
        if not self._unread:
            return
        losses = self._accelerator.reduce(torch.stack(self._unread)).tolist()
        for step, loss in enumerate(losses, start=len(self.losses) + 1):
            if not math.isfinite(loss):
                raise InvalidResult(
                    f"the loss is not finite at step {step} of {self._settings.steps}",
                    value=loss,
                    next_command="lower train.learning_rate, or set train.precision to bf16 or fp32",
                )
        self.losses += losses
        self._unread.clear()

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        self._read_losses()
        if self._saved_step == self.step:
            return
        mine = {f"rng/{name}": tensor for name, tensor in rng.capture(self._accelerator.device).items()}
        everyone = gather_object([mine]) if self._accelerator.num_processes > 1 else [mine]
        if self._accelerator.is_main_process:
            tensors = {f"{i}/{name}": tensor for i, state in enumerate(everyone) for name, tensor in state.items()}
            hook = self._hook.state() if self._hook is not None else {}
            tensors |= {f"hook/{name}": tensor for name, tensor in hook.items()}
            parameters = dict(self._parameters)
            optimizer = self._optimizer.state_dict()
            state = TrainState(self.step, parameters, optimizer, tensors, self._progress())
            written = self._checkpoints.save(state)
            if self._mirror is not None:
                self._mirror.submit(written)
        self._accelerator.wait_for_everyone()
        self._saved_step = self.step

    def _progress(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "losses": self.losses,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def resume(self) -> tuple[int | None, tuple[Skipped, ...]]:
        """Restore the newest undamaged checkpoint, here or in the mirror; its step, or None, and the damaged ones."""
        remote = self._mirror.fetch_newer(self._checkpoints) if self._mirror is not None else ()
        self._accelerator.wait_for_everyone()
        state, local = self._checkpoints.latest_valid()
        skipped = remote + local
        if state is None:
            return None, skipped
        copy_into(self._parameters, state.parameters)
        self._optimizer.load_state_dict(dict(state.optimizer))
        process = f"{self._accelerator.process_index}/rng/"
        rng.restore(_below(state.tensors, process), self._accelerator.device)
        if self._hook is not None:
            self._hook.restore(_below(state.tensors, "hook/"))
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state.progress["scaler"])
        self.losses = list(state.progress["losses"])
        self.tokens = state.progress["tokens"]
        self._seconds_before, self._started = state.progress["seconds"], time.monotonic()
        self._saved_step = state.step
        return state.step, skipped


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _token_count(batch: Batch) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else 0
