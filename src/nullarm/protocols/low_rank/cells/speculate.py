"""Stage `speculate`: how much of what the compressed model drafts the model as loaded keeps, prompt by prompt."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from nullarm.bench.decoding import GreedyDecoding
from nullarm.errors import DatasetError
from nullarm.models.texts.factory import make_text
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.low_rank.cells.loading import factors_of
from nullarm.protocols.low_rank.cells.reading import generator, go_on, model_of
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import rule
from nullarm.protocols.low_rank.speculation.result import Speculation, pooled, speculation_of
from nullarm.protocols.low_rank.tables import ACCEPTANCE, COSTS
from nullarm.protocols.low_rank.timing import twin

PROMPTS_PER_CHUNK = 16


def run(context: CellContext) -> CellResult:
    """Write after each prompt, and compare with what the verifier writes alone where decoding is greedy.

    Raises:
        Preempted: Asked to stop between two chunks.
        ModelError: The model is missing or unreadable, or another one than the drafter was made from.
        DatasetError: The test split has too few documents of this length.
    """
    verifier, tokenizer = model_of(context)
    drafter = twin(verifier)
    install(drafter, factors_of(context, "drafter"))
    prompts = _prompts(context, tokenizer)
    written: list[dict[str, Any]] = []
    for start in range(0, len(prompts), PROMPTS_PER_CHUNK):
        go_on(context, f"prompt {start} of {len(prompts)}")
        part = prompts[start : start + PROMPTS_PER_CHUNK]
        made = partial(_written, context, verifier, drafter, dict(enumerate(part, start)))
        written += context.writer.json_chunk(f"prompts-{start:05d}", made)
        context.progress(len(written), len(prompts), "prompts")
    found = [speculation_of(one) for one in written]
    total = pooled(found)
    context.writer.table_artefact(ACCEPTANCE, pa.Table.from_pylist(_rows(found)))
    costs = {"cost_ratio": total.cost_ratio, "predicted_speed_up": total.predicted_speed_up}
    context.writer.json_artefact(COSTS, costs)
    return CellResult(_metrics(total, written))


def _written(context: CellContext, verifier: Any, drafter: Any, prompts: dict[int, Tensor]) -> list[dict[str, Any]]:
    said = context.cell.parameters["speculation"]
    rows = []
    for number, prompt in prompts.items():
        one = speculate(
            verifier, drafter, prompt, said["new_tokens"], draft_length=said["tokens"],
            rule=rule(said["temperature"], generator(context, verifier.device, number)),
        )  # fmt: skip
        alone = None if said["temperature"] else _alone(verifier, prompt, said["new_tokens"])
        rows.append({**asdict(one), "equal": None if alone is None else list(one.tokens) == alone})
    return rows


def _alone(verifier: Any, prompt: Tensor, tokens: int) -> list[int]:
    """What the verifier writes by itself, greedily and past any end of text."""
    alone = GreedyDecoding("verifier", verifier, prompt, most=tokens)
    alone.run(tokens)
    written: list[int] = alone.written[0].tolist()
    return written


def _prompts(context: CellContext, tokenizer: Any) -> list[Tensor]:
    """The first tokens of documents of the test split, `[1, position]` each."""
    said, found = context.cell.parameters["speculation"], []
    for document in make_text(context.cell.settings["text"]).documents("test"):
        ids = tokenizer(document.text)["input_ids"][: said["prompt_tokens"]]
        if len(ids) == said["prompt_tokens"]:
            found.append(torch.tensor([ids]))
    if len(found) < said["prompts"]:
        raise DatasetError(
            f"the test split has too few documents of {said['prompt_tokens']} tokens", value=len(found),
            valid=f"at least speculation.prompts, {said['prompts']}",
        )  # fmt: skip
    return found[: said["prompts"]]


def _rows(found: list[Speculation]) -> list[dict[str, int]]:
    return [
        {"prompt": number, "position": position, "proposed": proposed, "judged": judged, "accepted": accepted}
        for number, one in enumerate(found)
        for position, (proposed, judged, accepted) in enumerate(
            zip(one.proposed, one.judged, one.accepted, strict=True), start=1
        )
    ]


def _metrics(total: Speculation, written: list[dict[str, Any]]) -> dict[str, float | int | None]:
    compared = [row["equal"] for row in written if row["equal"] is not None]
    return {
        "prompts": len(written),
        "prompts_equal_to_greedy": sum(compared) if compared else None,
        "acceptance": total.acceptance,
        "alpha": total.alpha,
        "tokens_per_round": total.tokens_per_round,
        "drafted_tokens": sum(total.accepted),
        "verifier_tokens": total.verifier_tokens,
    }
