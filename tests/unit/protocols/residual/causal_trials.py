"""Cells of interventions on two tiny models, run as a worker runs them; and a check that models are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nullarm.models.anatomy import anatomy
from nullarm.models.load import load_causal_lm
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.residual import interventions
from nullarm.protocols.residual.pair_models import Loaded, PairModels
from nullarm.protocols.residual.tables import CAPTURE, DIRECTIONS_NAME
from nullarm.store.cell import CellWriter, finished
from nullarm.store.files import decode_table
from nullarm.store.paths import CellPaths
from nullarm.store.record import FinishedCell
from nullarm.study.plan import Cell
from support.captures import capture_cell

PROMPTS = ("the red hat of ada", "mia has a blue", "leo")
"""Of different lengths; the last has one token."""


def load(name: str = "tiny-llama", seed: int = 1) -> Loaded:
    """A random model of its own, which may be changed."""
    model, tokenizer = load_causal_lm(f"random:{name}@{seed}")
    return Loaded(anatomy(model), tokenizer)


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


def cell_of(stage: str, *, prompts: tuple[str, ...] = PROMPTS, batch_tokens: int = 64, **parameters: Any) -> Cell:
    """The planned cell of an intervention."""
    asked = {
        "target": "red",
        "foil": "blue",
        "prompts": 16,
        "chat_template": False,
        "add_bos": False,
        "dtype": "float32",
        "window": 1,
        "strengths": [-1.0, 1.0],
        **parameters,
    }
    settings = {"prompts": list(prompts), "batch_tokens": batch_tokens}
    return Cell("residual", 1, stage, asked, seed=3, arm="little", settings=settings)


def open_context(
    root: Path, cell: Cell, needs: Mapping[str, FinishedCell] = {}, *, stop_after: int | None = None
) -> CellContext:
    """The cell opened for its next attempt; with `stop_after`, a stop is asked for after so many chunks."""
    done: list[int] = []
    return CellContext(
        cell,
        CellWriter(CellPaths(root / cell.id), 1),
        needs,
        should_stop=lambda: stop_after is not None and len(done) >= stop_after,
        progress=lambda number, total, of: done.append(number),
    )


def run(
    root: Path, cell: Cell, models: PairModels, needs: Mapping[str, FinishedCell] = {}
) -> tuple[list[dict[str, Any]], CellResult]:
    """Rows of the table of a cell that has run, and its result."""
    context = open_context(root, cell, needs)
    result = interventions.run(context, models)
    context.writer.commit(result.metrics)
    return table_of(root, cell).to_pylist(), result


def table_of(root: Path, cell: Cell) -> Any:
    """The table of a finished cell."""
    done = finished(CellPaths(root / cell.id))
    assert done is not None
    return done.table(cell.stage)


def finished_capture(
    root: Path, directions: Mapping[str, Tensor], comparisons: Mapping[str, tuple[str, str]] | None = None
) -> FinishedCell:
    """A capture with nothing but directions; run names say embedding and body, unembedding the body's."""
    cell = capture_cell("little")
    writer = CellWriter(CellPaths(root / cell.id), 1)
    sides = {"B": "base", "S": "sft"}
    found = {"base-sft": ("BB", "SS")} if comparisons is None else comparisons
    runs = [{"name": e + b, "embedding": sides[e], "body": sides[b], "unembedding": sides[b]} for e in "BS" for b in "BS"]
    pairs = [{"name": name, "left": left, "right": right} for name, (left, right) in found.items()]
    writer.json_artefact(CAPTURE, {"runs": runs, "comparisons": pairs})
    tensors = {name: tensor.contiguous() for name, tensor in directions.items()}
    writer.directory_artefact(
        DIRECTIONS_NAME, lambda path: safetensors.torch.save_file(tensors, path / f"{DIRECTIONS_NAME}.safetensors")
    )
    writer.commit({})
    done = finished(CellPaths(root / cell.id))
    assert done is not None
    return done


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
        {name: (id(tensor), tensor.detach().numpy().tobytes()) for name, tensor in model.state_dict(keep_vars=True).items()},
    ]


def chunks(root: Path, cell: Cell) -> list[bytes]:
    """The committed chunks of a cell."""
    return [path.read_bytes() for path in sorted(CellPaths(root / cell.id).chunks.iterdir())]


def rows_of(chunk: bytes) -> list[dict[str, Any]]:
    """Rows of a chunk."""
    found: list[dict[str, Any]] = decode_table(chunk).to_pylist()
    return found
