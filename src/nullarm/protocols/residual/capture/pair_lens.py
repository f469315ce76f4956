"""The lens of a pair of models: how residuals of either become logits over the tokens that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy
from nullarm.protocols.residual.capture.lens import Unembedding, unembedding_of
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.capture.tuned_lens import Translators
from nullarm.protocols.residual.reading.alignment import SharedVocabulary
from nullarm.protocols.residual.runs import SIDES, Side


@dataclass(frozen=True)
class Lens:
    """How residuals become logits.

    Attributes:
        unembeddings: Vocabulary projection of each side, over the shared tokens.
        base_ids: [V] base token id of each shared token.
        translators: Of each side; None unless the lens is tuned.
        normed: Whether the body's final norm comes before the projection.
        top_k: Tokens kept of each list.
        tracked: Ids (of the base) whose logits are followed.
    """

    unembeddings: Mapping[Side, Unembedding]
    base_ids: Tensor
    translators: Mapping[Side, Translators] | None
    normed: bool
    top_k: int
    tracked: Tensor

    @cached_property
    def places(self) -> Tensor:
        """[largest base id + 2] place of each base id among the shared tokens; −1 where it is not shared."""
        places = torch.full((int(self.base_ids.max()) + 2,), -1, device=self.base_ids.device)
        places[self.base_ids] = torch.arange(len(self.base_ids), device=self.base_ids.device)
        return places

    def place(self, ids: Tensor) -> Tensor:
        """Places of base ids among the shared tokens; −1 for any other, and for −1."""
        return self.places[ids.clamp(-1, len(self.places) - 1)]

    def read(self, anatomy: Anatomy, side: Side, stream: Tensor) -> Tensor:
        """[L·N, d_model] states to project, from [L, N, d_model] residuals of the blocks."""
        if self.translators is not None:
            translators = self.translators[side]
            stream = torch.stack([translators.apply(layer, h) for layer, h in enumerate(stream)])
        states: Tensor = anatomy.final_norm(stream) if self.normed else stream
        return states.flatten(0, 1).to(self.base_ids.device)


def lens_of(
    models: PairModels, shared: SharedVocabulary, kind: str, translators: Mapping[Side, Translators] | None, *,
    top_k: int, tracked: Sequence[int],
) -> Lens:  # fmt: skip
    """The lens of a pair over the tokens that both models have.

    Args:
        models: Both models.
        shared: The shared tokens.
        kind: `raw`, `norm` or `tuned`.
        translators: Of each side, for `tuned`.
        top_k: Tokens kept of each list.
        tracked: Base ids whose logits are followed.

    Raises:
        ModelError: There are fewer shared tokens than `top_k`.
    """
    device, ids = models.device, {"base": shared.left_ids, "sft": shared.right_ids}
    if top_k > len(shared.left_ids):
        raise ModelError("top_k is larger than the vocabulary", value=top_k, valid=f"up to {len(shared.left_ids)}")
    unembeddings = {
        side: unembedding_of(models.of(side).anatomy).to(device).rows(torch.from_numpy(ids[side]).to(device))
        for side in SIDES
    }
    base_ids = torch.from_numpy(shared.left_ids).to(device)
    return Lens(unembeddings, base_ids, translators, kind != "raw", top_k, torch.tensor(tracked, device=device).long())
