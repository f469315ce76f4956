"""What a model makes of windows: the negative log-likelihood of their scored tokens.

Shapes: `B` windows of a batch, `T` tokens of the longest, `n` scored tokens of all of them, `d` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nullarm.errors import InvalidResult
from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.models.tasks.evaluate import evaluation_mode
from nullarm.protocols.low_rank.perplexity.measures import Likelihood
from nullarm.protocols.low_rank.perplexity.windows import Window

LOGITS = 1 << 25
"""Logits held at once; 128 MiB in fp32."""


def window_likelihoods(model: Any, windows: Sequence[Window], *, batch_size: int) -> list[Likelihood]:
    """Likelihoods of the windows, in their order.

    Args:
        model: A causal LM; modes of its modules and gradients are left as they were.
        windows: From `windows`.
        batch_size: Windows in a forward pass; results do not depend on it beyond rounding.

    Raises:
        ModelError: The parts of the model are not known.
        InvalidResult: A likelihood is infinite or not a number.
    """
    parts = anatomy(model)
    # Neighbours in length waste no padding, and with the longest first a lack of memory shows at once.
    order = sorted(range(len(windows)), key=lambda n: -len(windows[n].ids))
    found: dict[int, float] = {}
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found.update(zip(batch, _batch(parts, [windows[n] for n in batch]), strict=True))
    return [_row(window, found[n]) for n, window in enumerate(windows)]


def _batch(parts: Anatomy, windows: Sequence[Window]) -> list[float]:
    """NLL of each window, nats, summed in float64."""
    states, targets = _scored_states(parts, windows)
    step = max(1, LOGITS // parts.head.out_features)
    pieces = zip(torch.split(states, step), torch.split(targets, step), strict=True)
    losses = torch.cat([_losses(parts, h, t) for h, t in pieces]).double()
    by_window = torch.split(losses, [window.scored for window in windows])
    return [float(nll) for nll in torch.stack([part.sum() for part in by_window]).tolist()]


def _scored_states(parts: Anatomy, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the scored tokens `[n, d]`, and these tokens `[n]`.

    Padding is on the right, where nothing that counts can attend to it. Without a mask, attention takes its fast causal
    path.
    """
    device = parts.model.device
    ids = torch.zeros(len(windows), max(len(window.ids) for window in windows) - 1, dtype=torch.long)  # [B, T]
    for row, window in zip(ids, windows, strict=True):
        row[: len(window.ids) - 1] = torch.from_numpy(window.ids[:-1])
    hidden = parts.trunk(input_ids=ids.to(device), use_cache=False).last_hidden_state  # [B, T, d]
    states = [h[len(w.ids) - 1 - w.scored : len(w.ids) - 1] for h, w in zip(hidden, windows, strict=True)]
    targets = [torch.from_numpy(window.ids[-window.scored :]) for window in windows]
    return torch.cat(states), torch.cat(targets).to(device)


def _losses(parts: Anatomy, states: Tensor, targets: Tensor) -> Tensor:
    logits = parts.head(states).float()  # [≤ n, V]
    if parts.softcap is not None:
        logits = parts.softcap * torch.tanh(logits / parts.softcap)
    return cross_entropy(logits, targets, reduction="none")


def _row(window: Window, nll: float) -> Likelihood:
    if not isfinite(nll):
        raise InvalidResult(
            f"the likelihood of window {window.item} is no finite number", value=nll, valid="a model of finite logits",
            next_command="look at the model's dtype: float16 overflows at 65504",
        )  # fmt: skip
    return Likelihood(window.item, window.cluster, window.scored, window.words, window.bytes, nll)
