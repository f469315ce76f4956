"""The model that an arm really runs: as it is loaded, or with another cell's factors in it."""

from __future__ import annotations

from typing import Any

from nullarm.models.reference import content_id
from nullarm.protocols.base import CellContext
from nullarm.protocols.low_rank.cells.reading import model_of
from nullarm.protocols.low_rank.factored.checkpoint import read_for
from nullarm.protocols.low_rank.factored.factors import Compressed
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.tables import FACTORS


def arm_model(context: CellContext, role: str) -> tuple[Any, Any]:
    """The model with the factors of the cell that is needed as `role`, or as it is loaded where there is none.

    Raises:
        ModelError: The model is missing or unreadable, or another one than the factors were made from.
        IntegrityError: The factors are not what their cell handed on.
    """
    model, tokenizer = model_of(context)
    if role in context.needs:
        install(model, factors_of(context, role))
    return model, tokenizer


def factors_of(context: CellContext, role: str) -> Compressed:
    """The factors of the cell that is needed as `role`, made from the study's model as it is now.

    Raises:
        ModelError: The model is another one than the factors were made from.
        IntegrityError: The factors are not what their cell handed on.
    """
    ref = context.cell.settings["model"]
    return read_for(context.needs[role].artefact(FACTORS), ref, content_id(ref))
