"""Stages, and the columns of what their cells hand on. A column of type float64 is a measurement that may be judged."""

from __future__ import annotations

TRAIN_FUSER, CALIBRATE, EVALUATE = "train_fuser", "calibrate", "evaluate"
"""The stages."""

ITEMS = "items"
"""Artefact of stage `evaluate`: one row per item, in the task's order. Columns:

- `item` string, unique over all tasks; `cluster` string or null; `dataset` string;
- `accuracy` float64, 1.0 or 0.0, an error counts as 0.0; `log_likelihood` float64 of the answer, nats per token, where
  answers are chosen by likelihood (0.0 is not "missing": the column is left out when answers are generated);
- `prediction`, `target` string; `error` string or null;
- `input_tokens` int64, the receiver's prompt; `sharer_tokens` int64; `sent_tokens` int64, tokens of the sharer in the
  message; `output_tokens` int64;
- `message_bytes` int64, `len(blob)` of all messages; `formula_bytes` int64, null where the size depends on the data
  (entropy coding); `request_bytes` int64, what the receiver asked for first (two-round selection).
"""

LATENCY = "latency"
"""Artefact of stage `evaluate`, apart from the items because no two runs agree in it: `item` string, and the seconds of
each item, float64, its share of its batch's. The transfer is not in it: `Link.seconds(message_bytes, request_bytes)`.
"""

SECONDS = ("sharer_s", "encode_s", "decode_s", "receiver_s", "fuse_s", "answer_s")
"""Columns of `latency`: the sharer's prefill, or its writing of text; encoding, with the choice of tokens; decoding;
the receiver's prefill, in legacy fusion with the fusing that is part of it; fusion; the answer.
"""

STATISTICS = "statistics"
"""Artefact of stage `calibrate`: one row per codec × stream. Columns: `codec`, `half` string; `layer`, `tokens` int64;
`bytes_per_token`, `relative_error` (‖x̂ − x‖ / ‖x‖), `largest_error` (relative to the largest magnitude), `cosine`,
`amax` float64.
"""

SENSITIVITY = "sensitivity"
"""Artefact of stage `calibrate`: one row per codec × stream × width. Columns: `codec`, `half` string; `layer`, `bits`
int64; `bytes_per_token` float64; `kl` float64, nats, mean over items: from what follows the prompt with the cache as it
is to what follows with only this stream quantised.
"""
