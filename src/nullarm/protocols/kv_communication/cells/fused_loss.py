"""What a fuser is trained to lower: the receiver's cross-entropy on the answers, read from the fused cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nullarm.protocols.kv_communication.cells.lessons import Batch
from nullarm.protocols.kv_communication.communication.answer import continue_logits
from nullarm.protocols.kv_communication.communication.fuse import Contribution, together
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, prefill_padded
from nullarm.protocols.kv_communication.fuser import Fuser
from nullarm.protocols.kv_communication.fuser.projector import SourceKV

Distort = Callable[[Prefilled], Mapping[int, SourceKV]]
"""What the wire makes of the sharer's cache: layer to keys and values."""


class FusedLoss(nn.Module):
    """The loss as a module around the fuser, whose `forward` is all of the arithmetic of a step.

    Mixed precision and several processes take hold of a module's `forward` only, and would pass by a fuser whose `fuse`
    is called from outside.

    Args:
        fuser: What is trained, and all that has parameters here.
        receiver: Frozen model that answers.
        sharer: Frozen model that sends.
        distort: What the wire does to the sharer's cache.
    """

    def __init__(self, fuser: Fuser, receiver: Any, sharer: Any, distort: Distort) -> None:
        super().__init__()
        self.fuser = fuser
        # In a tuple they are no submodules: not put into training mode, not broadcast, not checkpointed.
        self._frozen = (receiver, sharer)
        self._distort = distort

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the answers, nats a token; the batch as of `Lessons`."""
        receiver, sharer = self._frozen
        heard = prefill_padded(sharer, batch["sharer_ids"], batch["sharer_mask"])
        own = prefill_padded(receiver, batch["receiver_ids"], batch["attention_mask"])
        fused = together(own, [Contribution(self.fuser, self._distort(heard), batch["source"])])
        logits = continue_logits(receiver, fused, batch["answer_ids"], batch["answer_mask"])
        return F.cross_entropy(logits, batch["labels"][:, 1:][batch["answer_mask"]])
