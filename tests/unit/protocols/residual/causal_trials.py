"""Cells of interventions on two tiny models, run as a worker runs them; and a check that models are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from nullarm.models.anatomy import anatomy
from nullarm.models.instantiate import instantiate, tokenizer_for
from nullarm.models.shapes import SHAPES
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.residual.capture.pair_models import Loaded, PairModels
from nullarm.protocols.residual.causal import interventions
from nullarm.protocols.residual.tables import CAPTURE, DIRECTIONS_NAME
from nullarm.store.atomic import make_directory
from nullarm.store.cell import CellWriter, finished
from nullarm.store.lease import Leases
from nullarm.store.paths import StudyPaths
from nullarm.store.record import FinishedCell
from nullarm.study.plan import Cell
from support.captures import capture_cell

PROMPTS = ("the red hat of ada", "mia has a blue", "a")
"""Of different lengths; the last has one token."""


def load(name: str = "tiny-llama", seed: int = 1) -> Loaded:
    """A random model of its own, which may be changed."""
    return Loaded(anatomy(instantiate(name, seed=seed, device="cpu")), tokenizer_for(SHAPES[name]))


def changed(loaded: Loaded, change: Callable[[Any], None]) -> Loaded:
    """A copy of a model with something of it changed."""
    model = copy.deepcopy(loaded.anatomy.model)
    with torch.no_grad():
        change(model)
    return Loaded(anatomy(model), loaded.tokenizer)


def other_block(block: int, scale: float = 1.5) -> Callable[[Any], None]:
    """Scales the weights of one block."""

    def change(model: Any) -> None:
        for weight in anatomy(model).blocks[block].parameters():
            weight.mul_(scale)

    return change


def pair(base: Loaded, sft: Loaded, *, apart: bool = False) -> PairModels:
    """Two models on the CPU."""
    return PairModels(base, sft, torch.device("cpu"), apart)


def cell_of(
    stage: str, *, prompts: tuple[str, ...] = PROMPTS, first: int = 16, batch_tokens: int = 64, **parameters: Any
) -> Cell:
    """The planned cell of an intervention on the `first` ones of some prompts."""
    asked = {
        "target": "red",
        "foil": "blue",
        "prompts": first,
        "chat_template": False,
        "add_bos": False,
        "dtype": "float32",
        "window": 1,
        "strengths": [-1.0, 1.0],
        **parameters,
    }
    settings = {"prompts": list(prompts), "batch_tokens": batch_tokens}
    return Cell("residual", 1, stage, asked, seed=3, arm="little", settings=settings)


@contextmanager
def opened(
    root: Path, cell: Cell, needs: Mapping[str, FinishedCell] = {}, *, stop_after: int | None = None
) -> Iterator[CellContext]:
    """The cell opened for its next attempt; with `stop_after`, a stop is asked for after so many chunks."""
    paths, leases, done = StudyPaths(root).cell(cell.id), Leases(), list[int]()
    make_directory(paths.root)
    lease = leases.claim(paths)
    assert lease is not None, "somebody holds the cell"
    try:
        yield CellContext(
            cell,
            CellWriter(paths, lease.attempt),
            needs,
            should_stop=lambda: stop_after is not None and len(done) >= stop_after,
            progress=lambda number, total, of: done.append(number),
        )
    finally:
        leases.release(paths)


def run(
    root: Path, cell: Cell, models: PairModels, needs: Mapping[str, FinishedCell] = {}
) -> tuple[pd.DataFrame, CellResult]:
    """The table of a cell that has run to its end, and its result."""
    with opened(root, cell, needs) as context:
        result = interventions.run(context, models)
        context.writer.commit(result.metrics)
    return finished_cell(root, cell).table(cell.stage).to_pandas(), result


def finished_cell(root: Path, cell: Cell) -> FinishedCell:
    """A cell that has run."""
    done = finished(StudyPaths(root).cell(cell.id))
    assert done is not None, "the cell is not finished"
    return done


def finished_capture(
    root: Path, directions: Mapping[str, Tensor], comparisons: Mapping[str, tuple[str, str]] | None = None
) -> FinishedCell:
    """A capture of which there is no more than steering needs; `comparisons` are of the runs BB, BS, SB and SS."""
    cell, sides = capture_cell("little"), {"B": "base", "S": "sft"}
    found = {"base-sft": ("BB", "SS")} if comparisons is None else comparisons
    runs = [
        {"name": e + b, "embedding": sides[e], "body": sides[b], "unembedding": sides[b]} for e in "BS" for b in "BS"
    ]
    pairs = [{"name": name, "left": left, "right": right} for name, (left, right) in found.items()]
    tensors = {name: tensor.contiguous() for name, tensor in directions.items()}
    with opened(root, cell) as context:
        context.writer.json_artefact(CAPTURE, {"runs": runs, "comparisons": pairs, "multi_pass": True})
        context.writer.directory_artefact(
            DIRECTIONS_NAME, lambda path: safetensors.torch.save_file(tensors, path / f"{DIRECTIONS_NAME}.safetensors")
        )
        context.writer.commit({})
    return finished_cell(root, cell)


@contextmanager
def untouched(*loaded: Loaded) -> Iterator[None]:
    """Within, nothing may happen to models that is still there afterwards."""
    before = [_state(one.anatomy.model) for one in loaded]
    yield
    assert [_state(one.anatomy.model) for one in loaded] == before


def _state(model: Any) -> list[Any]:
    modules = dict(model.named_modules())
    return [
        {name: id(module) for name, module in modules.items()},
        {name: {k: repr(v) for k, v in vars(module).items() if "hook" in k} for name, module in modules.items()},
        {name: sorted(vars(module)) for name, module in modules.items()},
        {
            name: (id(tensor), tensor.detach().numpy().tobytes())
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
    ]
