"""The tuned lens: an affine translator per layer, trained to say at once what the model says in the end.

Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens", 2303.08112.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy
from nullarm.models.residual_stream import residual_stream
from nullarm.store.atomic import write_bytes
from nullarm.training.loop import Batch, BatchSource, fit
from nullarm.training.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class Translators:
    """h ↦ h + A h + b for the output of every block but the last, which is left as it is.

    Attributes:
        weight: [L − 1, d, d] A of each layer, fp32.
        bias: [L − 1, d] b of each layer, fp32.
    """

    weight: Tensor
    bias: Tensor

    @staticmethod
    def identity(layers: int, d_model: int) -> Translators:
        """Translators of L = `layers` blocks that change nothing."""
        return Translators(torch.zeros(layers - 1, d_model, d_model), torch.zeros(layers - 1, d_model))

    def apply(self, layer: int, h: Tensor) -> Tensor:
        """The output [..., d] of block `layer` as the final norm should see it; computed in fp32, in the dtype of h."""
        if layer == len(self.weight):
            return h
        wide = h.float()
        return (wide + F.linear(wide, self.weight[layer], self.bias[layer])).to(h.dtype)

    def to(self, device: torch.device | str) -> Translators:
        """The same on a device."""
        return Translators(self.weight.to(device), self.bias.to(device))

    def save(self, path: Path) -> None:
        """Write them as safetensors, whole or not at all.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        tensors = {"weight": self.weight, "bias": self.bias}
        write_bytes(path, safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()}))

    @staticmethod
    def load(path: Path) -> Translators:
        """Read what `save` wrote.

        Raises:
            ModelError: The file is not there, or not that of translators.
        """
        try:
            found = safetensors.torch.load_file(path)
            return Translators(found["weight"], found["bias"])
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(
                "the translators of the tuned lens cannot be read", value=str(path), valid="safetensors: weight, bias"
            ) from error


def train_translators(
    anatomy: Anatomy,
    batches: BatchSource,
    settings: TrainSettings,
    *,
    directory: Path,
    fingerprint: str,
    seed: int,
    should_stop: Callable[[], bool],
) -> Translators:
    """Train the translators of a model from the identity; interrupted and resumed, they come out the same.

    The loss is the mean over tokens and layers of KL(final ‖ lens), nats, over the model's own vocabulary. The model
    itself is frozen while this lasts.

    Args:
        anatomy: The model, in evaluation mode.
        batches: With `input_ids` and `attention_mask` [batch, position].
        settings: The knobs.
        directory: Of the checkpoints.
        fingerprint: What this run is.
        seed: Of the training loop.
        should_stop: Asked at each step boundary.

    Raises:
        Preempted: `should_stop` said so; a checkpoint of this very step is on disk.
        InvalidResult, ForeignStudyError, StorageError: As for `nullarm.training.loop.fit`.
        ModelError: The model has only one block.
    """
    layers = len(anatomy.blocks)
    if layers < 2:
        raise ModelError("a tuned lens has nothing to translate", value=f"{layers} block", valid="two blocks or more")
    start = Translators.identity(layers, anatomy.head.in_features).to(anatomy.head.weight.device)
    training = _Training(start, lambda translators, batch: mean_divergence(anatomy, translators, batch))
    with _frozen(anatomy.model):
        fit(
            training, batches, settings, directory=directory, fingerprint=fingerprint, seed=seed,
            should_stop=should_stop, loss_fn=lambda model, batch: model(batch),
        )  # fmt: skip
    return Translators(training.weight.detach(), training.bias.detach())


def mean_divergence(anatomy: Anatomy, translators: Translators, batch: Batch) -> Tensor:
    """Mean over tokens and all layers but the last of KL(final ‖ lens), nats.

    Args:
        anatomy: The model.
        translators: Of its layers.
        batch: `input_ids` and `attention_mask` [batch, position].
    """
    with torch.no_grad():
        residuals = residual_stream(anatomy, anatomy.embedding(batch["input_ids"]))
        tokens = residuals[1:, batch["attention_mask"].bool()]
        final = _log_probabilities(anatomy, tokens[-1])

    def divergence(layer: int) -> Tensor:
        lens = _log_probabilities(anatomy, translators.apply(layer, tokens[layer]))
        return F.kl_div(lens, final, reduction="sum", log_target=True) / len(final)

    # The logits of a layer are made again for its gradient, so that those of one layer are held and not of all.
    layers = range(len(tokens) - 1)
    return torch.stack([checkpoint(divergence, layer, use_reentrant=False) for layer in layers]).mean()


class _Training(nn.Module):
    """The translators as what is trained; called with a batch, their loss."""

    def __init__(self, translators: Translators, loss: Callable[[Translators, Batch], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(translators.weight), nn.Parameter(translators.bias)
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(Translators(self.weight, self.bias), batch)


def _log_probabilities(anatomy: Anatomy, residuals: Tensor) -> Tensor:
    """[n, V] of residuals [n, d], as the model's own norm and head have it; softmax in fp32."""
    states = anatomy.final_norm(residuals)
    logits = F.linear(states.to(anatomy.head.weight.dtype), anatomy.head.weight, anatomy.head.bias).float()
    if anatomy.softcap is not None:
        logits = anatomy.softcap * torch.tanh(logits / anatomy.softcap)
    return logits.log_softmax(-1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients for the model's own parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
