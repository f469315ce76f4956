"""Stage `train_fuser`: both models frozen, the fuser learns what makes the receiver's answers likely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.kv_communication.cells.fused_loss import Distort, FusedLoss
from nullarm.protocols.kv_communication.cells.lessons import Lesson, Lessons
from nullarm.protocols.kv_communication.cells.teaching import lessons_of
from nullarm.protocols.kv_communication.channels.participants import (
    Participant,
    check_fit,
    device,
    fuser_directory,
    receiver_of,
    sharer_of,
)
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.communication.transmission import messages_of, received
from nullarm.protocols.kv_communication.fuser import Fuser, layer_map, load_fuser, save_fuser
from nullarm.protocols.kv_communication.fuser.projector import SourceKV
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.wire.codec import Codec, codec_of
from nullarm.protocols.kv_communication.wire.message import decode_many, encode_many
from nullarm.training.loop import fit
from nullarm.training.settings import TrainSettings


def run(context: CellContext) -> CellResult:
    """Train, and hand on the fuser in the layout of published ones.

    Raises:
        Preempted: Asked to stop; what is checkpointed is kept.
        InvalidResult: The loss is not finite.
        DatasetError: There is no training item, or one is longer than a model's context.
        ModelError: A model cannot be loaded, or the fuser to start from does not fit or has no open gate.
    """
    cell = context.cell
    receiver, sharer = receiver_of(context), sharer_of(context, _settings(context)["sharer"])
    settings = TrainSettings(**cell.parameters["training"], **cell.settings["training"])
    fuser = _fuser(context, sharer, receiver, settings.steps)
    check_fit([fuser], [sharer], receiver)
    lessons = Lessons(_lessons(context, receiver, sharer), batch_size=settings.batch_size, seed=cell.seed)
    distort = _distortion(fuser, [codec_of(codec) for codec in cell.parameters["codecs"]])
    fitted = fit(
        FusedLoss(fuser, receiver.model, sharer.model, distort),
        lessons,
        settings,
        directory=context.writer.paths.scratch / "checkpoints",
        fingerprint=cell.id,
        seed=cell.seed,
        should_stop=context.should_stop,
        on_progress=lambda step, loss: context.progress(step, settings.steps, f"steps, loss {loss:.3f}"),
        extra_step=_Annealing(fuser),
        loss_fn=lambda loss, batch: loss(batch),
    )
    fuser.eval()
    context.writer.directory_artefact("fuser", lambda directory: save_fuser(fuser, directory))
    return CellResult(
        {
            "train_loss": float(np.mean(fitted.losses[-20:])),
            "steps": fitted.steps,
            "train_tokens": fitted.tokens,
            "parameters": sum(p.numel() for p in fuser.parameters()),
            "open_streams": len(fuser.streams()),
        }
    )


def _settings(context: CellContext) -> Mapping[str, Any]:
    """Those of the fuser that this cell trains."""
    found: Mapping[str, Any] = context.cell.settings["fusers"][context.cell.slice]
    return found


def _fuser(context: CellContext, sharer: Participant, receiver: Participant, steps: int) -> Fuser:
    """A fresh fuser, or the one to go on from with its gates as they are."""
    asked = context.cell.parameters
    if (first := asked["start_from"]) is not None:
        fuser = load_fuser(fuser_directory(context, first), device=device(), dtype=torch.float32).train()
        fuser.fix_gates()
        return fuser
    shape = dict(asked["shape"])
    name, sources = shape.pop("layer_map"), shape.pop("sources")
    pairs = layer_map(name, sharer.geometry.layers, receiver.geometry.layers, sources)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.cell.seed)
        made = Fuser.create(sharer.geometry, receiver.geometry, pairs, anneal_steps=steps, dtype=torch.float32, **shape)
    return made.to(device()).train()


def _lessons(context: CellContext, receiver: Participant, sharer: Participant) -> list[Lesson]:
    """The training split, or the front of it."""
    asked, task = context.cell.parameters, answered_task(context.cell.settings["task"])
    how = {name: asked[name] for name in ("alignment", "chat_template", "answer_prefix", "max_tokens")}
    return lessons_of(task, task.items("train")[: asked["train_items"]], receiver, sharer, **how)


def _distortion(fuser: Fuser, codecs: list[Codec]) -> Distort:
    """The cache as it is, or through one of the codecs, drawn for each step from the generator that the loop seeds."""

    def intact(cache: Prefilled) -> Mapping[int, SourceKV]:
        return dict(enumerate(cache.kv))

    def through_a_codec(cache: Prefilled) -> Mapping[int, SourceKV]:
        codec = codecs[int(torch.randint(len(codecs), ()))]
        lengths = cache.mask.sum(1).tolist()
        sent = messages_of(cache, fuser.streams(), [range(length) for length in lengths])
        key = cache.kv[0][0]
        with torch.autocast(key.device.type, enabled=False):  # codecs compute as they do on the wire
            got = decode_many(encode_many(sent, codec), device=str(key.device), dtype=key.dtype)
        return received(got, cache.mask.shape[1], key)

    return through_a_codec if codecs else intact


class _Annealing:
    """Lowers the temperature of the gates after every step; a function of the step, so its state is the step."""

    def __init__(self, fuser: Fuser) -> None:
        self._fuser, self._step = fuser, 0

    def __call__(self, step: int) -> None:
        self._step = step
        self._fuser.set_step(step)

    def state(self) -> dict[str, Tensor]:
        """The step."""
        return {"step": torch.tensor(self._step)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self(int(state["step"]))
