"""The interventions of a cell: from what it names to prompts and tokens that both models read alike, and on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.causal.layer_swap import run_layer_swap
from nullarm.protocols.residual.causal.outcome import Readout
from nullarm.protocols.residual.causal.patching import run_patching
from nullarm.protocols.residual.causal.steering import run_steering
from nullarm.protocols.residual.causal.tables import LAYER_SWAP, PATCHING, SETTING
from nullarm.protocols.residual.causal.trial import Trial
from nullarm.protocols.residual.reading.alignment import shared_vocabulary
from nullarm.protocols.residual.reading.rows import refuse_too_long
from nullarm.protocols.residual.reading.tokens import Encoded, read, reread
from nullarm.protocols.residual.reading.tracked import first_token
from nullarm.protocols.residual.runs import Passes, Side
from nullarm.protocols.residual.tables import CAPTURE, DIRECTIONS_NAME
from nullarm.store.record import FinishedCell
from nullarm.study.plan import Cell


def run(context: CellContext, models: PairModels) -> CellResult:
    """Do the intervention that the cell's stage names.

    Raises:
        DatasetError: A prompt has no tokens.
        InvalidResult: A number is NaN or infinite.
        ModelError: The models do not read the prompts alike, or their shapes or blocks do not fit.
        Preempted: Somebody asked for a stop.
    """
    cell = context.cell
    rows = read_alike(cell, models)
    tokens = {name: _token(cell.parameters[name], models) for name in ("target", "foil")}
    target, foil = tokens["target"]["id"], tokens["foil"]["id"]
    if target == foil:
        raise ModelError(
            "causal.target and causal.foil begin with the same token", value=tokens["target"]["token"],
            valid="texts whose first tokens differ",
        )  # fmt: skip
    trial = Trial(context, models, rows, Readout(target, foil, _shared(models)))
    _write_setting(trial, tokens)
    if cell.stage == PATCHING:
        return run_patching(trial)
    if cell.stage == LAYER_SWAP:
        return run_layer_swap(trial)
    return run_steering(trial, mean_difference(context.needs["capture"]))


def read_alike(cell: Cell, models: PairModels) -> tuple[Encoded, ...]:
    """The first prompts, as they are, which both models have to read as the same token ids.

    Raises:
        DatasetError: A prompt has no tokens.
        ModelError: The tokenisers differ on a prompt, or lack what was asked for.
    """
    parameters, base, sft = cell.parameters, models.base.tokenizer, models.sft.tokenizer
    templated, add_bos = parameters["chat_template"], parameters["add_bos"]
    rows, _ = read(
        base,
        cell.settings["prompts"][: parameters["prompts"]],
        seed=cell.seed,
        chat_template=templated,
        add_bos=add_bos,
        template_of=None if base.chat_template else sft,
    )
    others = reread(rows, base, sft, add_bos=add_bos, templated=templated)
    if different := [row for row, other in zip(rows, others, strict=True) if row.ids != other.ids]:
        raise ModelError(
            f"{cell.stage} needs prompts that both models read as the same tokens, and they differ on prompt "
            f"{different[0].prompt}", value=different[0].text, valid="one tokenizer for both (`tokenizer` of the pair)",
        )  # fmt: skip
    for loaded in (models.base, models.sft):
        refuse_too_long(loaded, rows)
    return rows


def mean_difference(capture: FinishedCell) -> Tensor:
    """[layers + 1, d_model] mean difference of the models as they are, layer −1 first, from a capture.

    Raises:
        IntegrityError: The capture has no directions, or they are damaged.
        ModelError: The capture did not compare the models as they are.
    """
    from safetensors.torch import load_file

    own = Passes.from_json(capture.json(CAPTURE)).own
    directions: dict[str, Tensor] = load_file(capture.artefact(DIRECTIONS_NAME) / f"{DIRECTIONS_NAME}.safetensors")
    if own is None or own.name not in directions:
        raise ModelError(
            "steering needs the mean difference between the models, each with its own embedding and unembedding",
            value=sorted(directions), valid="a capture that compares such runs of models of one width",
        )  # fmt: skip
    return directions[own.name].float()


def _token(text: str, models: PairModels) -> dict[str, Any]:
    """First token of a text, which has to be the same in both models."""
    found, note = first_token(text, models.base.tokenizer)
    other, _ = first_token(text, models.sft.tokenizer)
    rows = min(loaded.anatomy.head.out_features for loaded in (models.base, models.sft))
    if found != other or found >= rows:
        raise ModelError(
            f"the first token of {text!r} is not the same in both models", value=f"ids {found} and {other}",
            valid="a token of both vocabularies",
        )  # fmt: skip
    return {"text": text, "id": found, "token": models.base.tokenizer.convert_ids_to_tokens(found), "note": note}


def _shared(models: PairModels) -> dict[Side, slice | Tensor]:
    base, sft = models.base, models.sft
    shared = shared_vocabulary(
        base.tokenizer, sft.tokenizer, base.anatomy.head.out_features, sft.anatomy.head.out_features
    )
    if shared.prefix is not None:
        return {"base": slice(shared.prefix), "sft": slice(shared.prefix)}
    return {"base": torch.from_numpy(shared.left_ids), "sft": torch.from_numpy(shared.right_ids)}


def _write_setting(trial: Trial, tokens: Mapping[str, Mapping[str, Any]]) -> None:
    named = {name: {key: token[key] for key in ("text", "id", "token")} for name, token in tokens.items()}
    notes = [token["note"] for token in tokens.values() if token["note"]]
    prompts = {str(row.prompt): list(row.tokens) for row in trial.rows}
    setting = {**named, "least_gap": trial.least_gap, "tokens": prompts, "notes": notes}
    trial.context.writer.json_artefact(SETTING, setting)
