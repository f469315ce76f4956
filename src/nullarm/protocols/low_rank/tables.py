"""Stages, and what their cells hand on. A column of type float64 is a measurement that may be judged."""

from __future__ import annotations

SPECTRA, COMPRESS, EVALUATE, SPECULATE, MEASURE, SWEEP = (
    "spectra", "compress", "evaluate", "speculate", "measure", "sweep",
)  # fmt: skip
"""The stages."""

SINGULAR_VALUES = "singular_values"
"""Artefact of stage `spectra`: `layer`, `index` int64; `slot`, `metric` (weight | whitened) string; `singular_value`
float64, descending with `index`.
"""

RANKS = "ranks"
"""Artefact of stage `spectra`: one row per layer × slot × metric with the ranks at which 50 to 99 % of the energy is
there; see `low_rank.spectra`.
"""

VARIANCE = "variance"
"""Artefact of stage `spectra`: `layer` int64, `variance` float64 of each block's output over tokens and channels."""

FACTORS = "factors"
"""Artefact of stage `compress`: a directory with `factors.safetensors` and `compression.json`."""

GROUPS = "groups"
"""Artefact of stage `compress`: one row per layer and group of slots. Columns: `layer`, `rank`, `break_even` int64,
null where matrices are rounded; `slots` string, joined by `+`; `bytes`, `dense_bytes` int64; `above_break_even` bool;
`weight_error`, `output_error` float64, relative Frobenius norms, the output's on calibration inputs. Of an arm whose
bases were adapted, all of it is as it was afterwards.
"""

HISTORY = "history"
"""Artefact of stage `compress` where a gauge was fitted or a basis adapted, JSON: `gauge` (`g`; `energy`, E at g = 1
and after each iteration; `moved`, the largest |log g|); `online`, a row per block and group (`block`, `layer`, `slots`,
`rate`, `drift`, `turned`).
"""

ITEMS = "items"
"""Artefact of stage `evaluate`: one row per window. Columns: `item` string; `cluster` string, its document; `tokens`,
`words`, `bytes` int64, those that are scored; `nll` float64, nats, over the window; `log_likelihood` float64, nats per
token, larger is better.
"""

TREATMENT = "treatment"
"""Artefact of stage `evaluate`, JSON: `weights` and `logits`, hex hashes of what the arm really ran;
`bytes`, `slot_bytes`: of all weights, and of the matrices in the seven slots of all layers.
"""

ACCEPTANCE = "acceptance"
"""Artefact of stage `speculate`: one row per prompt × position in the draft: `prompt`, `position`, and the numbers of
tokens `proposed` there, `judged` (no earlier one of the draft was refused) and `accepted`, int64.
"""

COSTS = "costs"
"""Artefact of stage `speculate`, JSON, apart from the metrics because no two runs agree in it: `cost_ratio`, seconds
of a drafted token over seconds of a verification, and `predicted_speed_up` at that ratio; null where none was drafted.
"""

RUNS = "runs"
"""Artefact of stage `measure`: one row per timed run; see `nullarm.bench.session`."""

SPECULATION = "speculation"
"""Artefact of stage `measure` where an arm speculates and both stay in one process, JSON by arm (`treatment`,
`control`), of its runs of the contrast that may be believed: `runs`, `rounds`, `draft_length` (γ); `proposed`,
`judged`, `accepted` by position, as in `acceptance`; `alpha`, `tokens_per_round`; `cost_ratio`, seconds of a drafted
token over those of a token that the control wrote, and `predicted_speed_up` at that ratio, which takes a verification
to last as long as such a token; both null where the control is not the model as it is loaded, or none was drafted.
"""

ERRORS = "errors"
"""Artefact of stage `sweep`: one row per layer × group × rank; see `low_rank.sweep`."""
