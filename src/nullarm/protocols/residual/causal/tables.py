"""The tables of the interventions: their columns, units and meaning.

Every intervention runs one model, the recipient, with something of the other one, the donor, put into it. Outcome is
logit(target) − logit(foil) at the last position of the prompt, through the recipient's own final norm and head, in fp32
(Zhang & Nanda 2023, 2309.16042: unlike a probability it is linear in the residual, and sees what lowers it too). Effect
is the share of the way from the recipient to the donor that the intervention has gone, their normalisation:
(outcome − recipient) / (donor − recipient). It may lie outside of 0 … 1. A value that is not defined is null.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from nullarm.protocols.residual.runs import Side

PATCHING, LAYER_SWAP, STEERING = "patching", "layer_swap", "steering"
"""Stages, and the names of their tables."""

DIRECTIONS: Mapping[str, tuple[Side, Side]] = {"base_into_sft": ("base", "sft"), "sft_into_base": ("sft", "base")}
"""Name to donor and recipient, of `patching` and `layer_swap`."""

MEAN_DIFFERENCE, RANDOM = "mean_difference", "random"
"""What `steering` adds, and its control: a random direction as long."""

SPANS = ("window", "prefix", "suffix")
"""Which blocks `layer_swap` exchanges: `window` consecutive ones, all up to one, all from one on."""

LEAST_GAP: Mapping[str, float] = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""By dtype of the weights, the least |donor − recipient|, in logits, of which an effect is a share: a smaller gap is
about as large as the rounding of logits, and its effects would be noise. Below it the effect is null."""

OUTCOMES: Mapping[str, str] = {
    "outcome": "logit(target) − logit(foil) of the recipient under the intervention",
    "recipient": "the same of the recipient as it is",
    "donor": "the same of the donor as it is",
    "effect": "(outcome − recipient) / (donor − recipient); null where |donor − recipient| is below `LEAST_GAP`",
    "kl_recipient": "KL(recipient ‖ intervened) of the next-token distributions at the last position, nats",
    "kl_donor": "KL(donor ‖ intervened), nats",
    "kl_before": "KL(donor ‖ recipient), nats: what `kl_donor` was before the intervention",
}
"""Columns that every intervention's table ends with, fp32. Divergences are over the tokens both vocabularies have."""

_OUTCOMES = tuple(pa.field(name, pa.float32()) for name in OUTCOMES)
_PROMPT = pa.field("prompt", pa.int32(), nullable=False)
_DIRECTION = pa.field("direction", pa.string(), nullable=False)
_LAYER = pa.field("layer", pa.int16(), nullable=False)

PATCHING_TABLE = pa.schema([_PROMPT, _DIRECTION, _LAYER, pa.field("position", pa.int32(), nullable=False), *_OUTCOMES])
"""One row per prompt, direction, layer and position whose residual is the donor's. Layer −1 is the embedding output,
layer k the output of block k."""

LAYER_SWAP_TABLE = pa.schema(
    [
        _PROMPT,
        _DIRECTION,
        pa.field("span", pa.string(), nullable=False),
        pa.field("first", pa.int16(), nullable=False),
        pa.field("last", pa.int16(), nullable=False),
        *_OUTCOMES,
        pa.field("loss", pa.float32()),
        pa.field("loss_recipient", pa.float32()),
        pa.field("loss_donor", pa.float32()),
    ]
)
"""One row per prompt, direction and span; the donor's blocks `first` to `last`, both included, stand in the recipient.
Embedding, final norm and head stay the recipient's. Losses are −log p of the prompt's own next tokens, nats a token, of
the recipient so changed, of the recipient and of the donor as they are; null where the prompt has one token."""

STEERING_TABLE = pa.schema(
    [
        _PROMPT,
        _DIRECTION,
        _LAYER,
        pa.field("strength", pa.float64(), nullable=False),
        pa.field("added_norm", pa.float32(), nullable=False),
        *_OUTCOMES,
    ]
)
"""One row per prompt, direction (`mean_difference` or its control `random`), layer and strength. The recipient is the
base model, the donor the fine-tuned one; `added_norm` is ‖what was added‖₂ at each steered position."""

SETTING = "setting"
"""Artefact of every intervention, as JSON: `target` and `foil` {text, id, token}, `least_gap`, `tokens` {prompt: the
vocabulary strings of its tokens}, `notes`."""
