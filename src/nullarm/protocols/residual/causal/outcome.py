"""What an intervention is judged by: logit difference, next-token distribution, loss, in fp32 (see `causal_tables`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from nullarm.errors import InvalidResult
from nullarm.models.anatomy import Anatomy
from nullarm.protocols.residual.capture.lens import unembedding_of
from nullarm.protocols.residual.causal.tables import OUTCOMES
from nullarm.protocols.residual.runs import Side

COLUMNS = 8192
"""Rows of the head that are in fp32 at one moment, where its weights are not."""
LOSS_ROWS = 256
"""Positions whose logits over the whole vocabulary are held at one moment."""


@dataclass(frozen=True)
class Ending:
    """How runs end, at the last position of each row.

    Attributes:
        outcome: [row] logit(target) − logit(foil).
        log_probs: [row, token] over the tokens that both vocabularies have.
    """

    outcome: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class Readout:
    """What is read at the last position.

    Attributes:
        target: Id of the token whose logit is followed, the same in both models.
        foil: Id of the token it is compared with.
        shared: Of each side, the ids of the tokens that both vocabularies have, in one order.
    """

    target: int
    foil: int
    shared: Mapping[Side, slice | Tensor]

    def ending(self, side: Side, anatomy: Anatomy, hidden: Tensor, lengths: Tensor) -> Ending:
        """How the runs of a side end.

        Args:
            side: Whose head it is.
            anatomy: The model.
            hidden: [row, position, d_model] normed last hidden states.
            lengths: [row] positions that are no padding.
        """
        found = logits(anatomy, hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1])
        return Ending(found[:, self.target] - found[:, self.foil], found[:, self.shared[side]].log_softmax(-1))


@torch.no_grad()
def final_hidden(anatomy: Anatomy, inputs_embeds: Tensor) -> Tensor:
    """[row, position, d_model] normed last hidden states; the head is not called."""
    hidden: Tensor = anatomy.trunk(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
    return hidden.to(inputs_embeds.device)


@torch.no_grad()
def logits(anatomy: Anatomy, states: Tensor) -> Tensor:
    """[n, vocabulary] logits of [n, d_model] normed states: the model's own head and softcap, in fp32."""
    unembedding = unembedding_of(anatomy)
    at_head = states.to(unembedding.weight.device, torch.float32)
    parts = [functional.linear(at_head, rows.float()) for rows in torch.split(unembedding.weight, COLUMNS)]
    found = torch.cat(parts, dim=-1)
    unembedding.finish(found)
    return found.to(states.device)


@torch.no_grad()
def prompt_loss(anatomy: Anatomy, hidden: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """[row] mean −log p of each row's own next tokens, nats; NaN where the row has one token.

    Args:
        anatomy: The model.
        hidden: [row, position, d_model] normed last hidden states.
        ids: [row, position] token ids.
        lengths: [row] positions that are no padding.
    """
    real = torch.arange(ids.shape[1] - 1, device=ids.device) < lengths[:, None] - 1
    states, following = hidden[:, :-1][real], ids[:, 1:][real]
    losses = [
        functional.cross_entropy(logits(anatomy, some), true, reduction="none")
        for some, true in zip(torch.split(states, LOSS_ROWS), torch.split(following, LOSS_ROWS), strict=True)
    ]
    sums = torch.zeros(len(ids), device=hidden.device)
    return sums.index_add(0, real.nonzero()[:, 0], torch.cat(losses)) / (lengths - 1)


def divergence(of: Tensor, against: Tensor) -> Tensor:
    """[row] KL(of ‖ against) in nats, from log-probabilities [row, token]; rounding below 0 is 0."""
    return (of.exp() * (of - against)).sum(-1).clamp_min(0)


def outcome_columns(found: Ending, recipient: Ending, donor: Ending, least_gap: float) -> dict[str, pa.Array]:
    """The columns `OUTCOMES`.

    Args:
        found: Of the runs under intervention.
        recipient: Of the recipient as it is: as many rows, or one for all.
        donor: Of the donor as it is, likewise.
        least_gap: Least |donor − recipient| of which an effect is a share.

    Raises:
        InvalidResult: A number is NaN or infinite.
    """
    gap = donor.outcome - recipient.outcome
    defined = (gap.abs() >= least_gap).expand_as(found.outcome)
    values = {
        "outcome": found.outcome,
        "recipient": recipient.outcome,
        "donor": donor.outcome,
        "effect": torch.where(defined, (found.outcome - recipient.outcome) / gap, 0.0),
        "kl_recipient": divergence(recipient.log_probs, found.log_probs),
        "kl_donor": divergence(donor.log_probs, found.log_probs),
        "kl_before": divergence(donor.log_probs, recipient.log_probs),
    }
    host = torch.stack([values[name].expand_as(found.outcome) for name in OUTCOMES]).cpu().numpy()
    for name, row in zip(OUTCOMES, host, strict=True):
        _require_finite(name, row)
    columns = {name: pa.array(row, pa.float32()) for name, row in zip(OUTCOMES, host, strict=True)}
    return columns | {"effect": pa.array(host[list(OUTCOMES).index("effect")], mask=~defined.cpu().numpy())}


def _require_finite(name: str, row: np.ndarray) -> None:
    if not np.isfinite(row).all():
        raise InvalidResult(
            f"{name} of an intervention is not finite",
            value=float(row[~np.isfinite(row)][0]),
            next_command="try dtype: float32; a model in half precision may overflow",
        )
