"""The tables of a capture: their columns, units and meaning.

Rows are ordered by length of the prompt, prompt, variant; then kind, record, layer, position. Layer −1 is the embedding
output, layer k the output of block k before the final norm. Positions are those of the left (base) tokeniser. Every
difference is right − left of a comparison: fine-tuned − base. A value that was not computed is null, never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

KEYS: tuple[pa.Field, ...] = (
    pa.field("prompt", pa.int32(), nullable=False),
    pa.field("variant", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("record", pa.string(), nullable=False),
    pa.field("layer", pa.int16(), nullable=False),
    pa.field("position", pa.int32(), nullable=False),
)
"""Index of the prompt; variant; `run`, `pair` or `factorial`; name of the run, of the comparison, or `factorial`."""

RUN_METRICS: Mapping[str, str] = {
    "norm": "‖h‖₂ of the residual",
    "norm_delta": "norm minus the norm one layer below",
    "cosine_prev": "cosine with the residual one layer below",
    "entropy": "entropy of the lens distribution, nats",
    "loss": "−log p of the true next token through the lens, nats; null at the last position",
    "rank": "rank of the true next token through the lens, 1 is the largest logit; null at the last position",
}
"""Of rows of kind `run`."""

PAIR_METRICS: Mapping[str, str] = {
    "cosine": "cosine of left and right residual",
    "norm_diff": "‖right − left‖₂",
    "relative_diff": "‖right − left‖₂ / ‖left‖₂",
    "direct_diff": "‖what the right block makes of the left run's residual − what the left block makes of it‖₂; "
    "at layer −1 the distance of the embeddings",
    "kl_div": "KL(right ‖ left) of the lens distributions, nats: fine-tuned against base",
    "kl_reverse": "KL(left ‖ right), nats",
    "js": "Jensen–Shannon divergence, nats, at most log 2",
    "overlap": "share of the top-k tokens that left and right have in common",
    "entropy_diff": "entropy of right − left, nats",
    "loss_diff": "loss of right − left, nats; negative when fine-tuning made the true token likelier",
}
"""Of rows of kind `pair`."""

FACTORIAL_METRICS: Mapping[str, str] = {
    "embedding_effect": "‖½[(SB − BB) + (SS − BS)]‖₂, main effect of the embedding",
    "body_effect": "‖½[(BS − BB) + (SS − SB)]‖₂, main effect of the body",
    "interaction": "‖½[(SS − SB) − (BS − BB)]‖₂",
    "embedding_share": "squared main effect of the embedding over the sum of the three squares; null when that is 0",
    "body_share": "the same of the body",
    "interaction_share": "the same of the interaction",
}
"""Of rows of kind `factorial`. The three squared effects add up to the sum of squares of the four residuals around
their mean (a 2² factorial, Montgomery, Design and Analysis of Experiments, ch. 6)."""

METRICS: Mapping[str, str] = {**RUN_METRICS, **PAIR_METRICS, **FACTORIAL_METRICS}

DIVERGENCES = ("js", "kl_div", "relative_diff", "direct_diff")
"""Metrics of the primary comparison that are judged, as a mean over layers and, with `_final`, at the last one."""
SHARES = ("embedding_share", "body_share", "interaction_share")
"""Judged as a mean over layers, where the factorial is run."""
ITEM_METRICS = (*(f"{name}{end}" for name in DIVERGENCES for end in ("", "_final")), "loss_gain", *SHARES)
"""Columns of the artefact `items`, as far as they could be measured: what `analysis.metric` may name."""

SCALARS = pa.schema([*KEYS, *(pa.field(name, pa.float32()) for name in METRICS)])
"""One row per prompt, variant, record, layer and position."""

TOPK = pa.schema(
    [
        *KEYS,
        pa.field("direction", pa.string(), nullable=False),
        pa.field("indices", pa.list_(pa.int32()), nullable=False),
        pa.field("values", pa.list_(pa.float32()), nullable=False),
    ]
)
"""Token ids and values, largest first: of a run's logits (`top`), of right − left (`increased`, and `decreased`, whose
values are negative and whose first is the most negative). Ids are the base vocabulary's. Left and right logits are
compared as they are, as in the source; a shift of all logits alike shows here and nowhere else."""

TRACKED = pa.schema([*KEYS, pa.field("token_id", pa.int32(), nullable=False), pa.field("logit", pa.float32())])
"""Lens logits of the tracked tokens, rows of kind `run` only; ids are the base vocabulary's."""

PROMPTS = pa.schema(
    [
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.list_(pa.string()), nullable=False),
        pa.field("positions", pa.list_(pa.int32()), nullable=False),
    ]
)
"""What was read, in the order of the other tables: text after the variant, base token ids and strings, and the
positions (of the base tokeniser) that are compared: all of them unless the tokenisers differ."""

LAYERS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
"""Per layer: the mean over prompts of every scalar metric (each prompt's mean over its positions), and the whole-layer
metrics `cka` (pairs), `effective_rank` (runs), `mean_difference` (norm of the mean difference, pairs) and
`direction_consistency` (mean cosine of a prompt's own mean difference with that of all, pairs); 95 % bootstrap
intervals over prompts."""

VOCABULARY = pa.schema([pa.field("id", pa.int32(), nullable=False), pa.field("token", pa.string(), nullable=False)])
"""Base token ids and their decoded text, for all shared tokens."""

CAPTURE = "capture"
"""Artefact with what was captured, as JSON: `started` (UTC, `YYYYmmdd_HHMMSS`), `entry`, `base`, `sft`, `dtype`,
`lens`, `top_k`, `layers`, `d_model`, `multi_pass`, `runs` [{name, body, embedding, unembedding}], `comparisons` [{name,
left, right}], `tracked` {id: label}, `tokens_shared`, `tokens_left_out` {base, sft}, `refused` {metric: reason},
`notes`, `null` {divergence: largest value}."""
SCALARS_NAME, TOPK_NAME, TRACKED_NAME = "scalars", "topk", "tracked"
PROMPTS_NAME, LAYERS_NAME, VOCABULARY_NAME, DIRECTIONS_NAME = "prompts", "layers", "vocabulary", "directions"
"""Names of the artefacts of a capture. `directions` is a directory with `directions.safetensors`: per comparison a
tensor [layers + 1, d_model], the mean difference of layer −1, 0, 1, …"""
