"""Stage `train_fuser` run for real, on the built-in small world: what of the study reaches the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from communication_models import open_fuser, prompts, receiver, sharer
from communication_tokenizers import byte_bpe
from kv_studies import TRAINING, study
from small_fusers import SMALL, randomise
from torch.nn.modules.module import register_module_forward_hook

from nullarm.conduct import lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.models.load import load_causal_lm
from nullarm.protocols.base import CellContext
from nullarm.protocols.kv_communication.cells import train_fuser
from nullarm.protocols.kv_communication.cells.lessons import Lesson
from nullarm.protocols.kv_communication.channels.participants import Participant
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.fuser import C2CProjector, Fuser, load_fuser, save_fuser
from nullarm.protocols.kv_communication.fuser.projector import FeedForward
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.protocols.kv_communication.wire.codec import Rotated
from nullarm.store.cell import CellWriter, read_failure
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell
from nullarm.study.spec import Study


def ran(root: Path, asked: Study) -> StudyStore:
    store = lay_down(prepare(asked), root)
    run(store, InlineEngine())
    return store


def training(store: StudyStore, name: str) -> Cell:
    return next(cell for cell in store.plan if cell.stage == "train_fuser" and cell.slice == name)


def trained(store: StudyStore, name: str) -> Fuser:
    finished = store.finished(training(store, name).id)
    assert finished is not None
    return load_fuser(finished.artefact("fuser"))


def fuser_on_disk(directory: Path, gates: float) -> Fuser:
    """Of the small world's shape, the keys of its first layer behind a closed gate."""
    fuser = Fuser.create(Geometry.of_reference("builtin:world-chat"), Geometry.of_reference("builtin:world"), **SMALL)
    for projector in fuser.projectors:
        assert isinstance(projector, C2CProjector)
        randomise(projector, gates)
    fuser[0].gate_logit("key").data.fill_(-1)
    save_fuser(fuser, directory)
    return fuser


def tuning(directory: Path, **changes: Any) -> Study:
    """Of a fuser that goes on from one that was trained elsewhere."""
    fusers = {
        "there": {"sharer": "chat", "directory": str(directory)},
        "tuned": {"sharer": "chat", "start_from": "there", "training": TRAINING, **changes},
    }
    return study({"tuned": {"fusers": ["tuned"]}}, fusers=fusers, milestones=[5])


def test_a_fuser_goes_on_from_one_that_was_trained_elsewhere(tmp_path: Path) -> None:
    before = fuser_on_disk(tmp_path / "there", gates=1.0)
    after = trained(ran(tmp_path / "study", tuning(tmp_path / "there")), "tuned")

    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    changed = {name for (name, a), b in pairs if not a.equal(b)}
    assert not {name for name in changed if "gate_logit" in name}
    assert not {name for name in changed if name.startswith("projectors.0.key_")}
    assert {name for name in changed if name.startswith("projectors.0.value_")}


def test_a_fuser_whose_gates_are_all_closed_is_not_trained_on(tmp_path: Path) -> None:
    fuser_on_disk(tmp_path / "there", gates=-1.0)
    store = ran(tmp_path / "study", tuning(tmp_path / "there"))

    failure = str(read_failure(store.paths.cell(training(store, "tuned").id)))
    assert "every gate of the fuser is closed: nothing to train" in failure


def test_the_precision_of_the_study_is_that_of_the_training(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def look(module: torch.nn.Module, _given: Any, made: Any) -> None:
        if isinstance(module, FeedForward) and torch.is_grad_enabled():
            seen.add(made.dtype)

    hook = register_module_forward_hook(look)
    try:
        fusers = {"main": {"training": {**TRAINING, "precision": "bf16"}}}
        fuser = trained(ran(tmp_path, study(fusers=fusers, milestones=[0])), "main")
    finally:
        hook.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in fuser.parameters()} == {torch.float32}


def test_a_layer_has_as_many_sources_as_the_study_says(tmp_path: Path) -> None:
    fusers = {"main": {"shape": {"layer_map": "k_nearest", "sources": 2}}}
    fuser = trained(ran(tmp_path, study(fusers=fusers, milestones=[0])), "main")
    assert {len(entries) for entries in fuser.layers.values()} == {2}


def lessons(root: Path, **settings: Any) -> list[Lesson]:
    """Of the first items, when the sharer's tokens are smaller than the receiver's."""
    asked = study(fusers={"main": {"train_items": 50, **settings}}, milestones=[0])
    writer: CellWriter = None  # type: ignore[assignment]  # nothing is written
    cell = training(lay_down(prepare(asked), root), "main")
    context = CellContext(cell, writer, {}, lambda: False, lambda done, total, note: None)
    model, tokenizer = load_causal_lm("builtin:world")
    return train_fuser._lessons(context, Participant(model, tokenizer), Participant(model, byte_bpe()))


def test_training_aligns_tokens_as_the_fuser_says(tmp_path: Path) -> None:
    for alignment in ("offsets", "one_id"):
        found = lessons(tmp_path / alignment, alignment=alignment)
        same = {len(lesson.exchange.sharers[0].ids) == len(lesson.exchange.receiver_ids) for lesson in found}
        assert same == {alignment == "one_id"}


def test_training_leaves_out_what_is_longer_than_the_fuser_says(tmp_path: Path) -> None:
    tokens = [max(lesson.tokens) for lesson in lessons(tmp_path / "all")]
    most = sorted(tokens)[10]
    kept = lessons(tmp_path / "short", max_tokens=most)
    assert [max(lesson.tokens) for lesson in kept] == [n for n in tokens if n <= most]
    assert len(kept) < len(tokens) == 50


def test_codecs_are_trained_on_as_they_are_on_the_wire_whatever_the_precision() -> None:
    mine, theirs = receiver(), sharer()
    cache = prefill(theirs, prompts(9, 7))
    through = train_fuser._distortion(open_fuser(theirs, mine), [Rotated(bits=8, group=8)])
    with torch.autocast("cpu", torch.bfloat16):
        in_training = through(cache)
    for layer, pair in through(cache).items():
        for expected, found in zip(pair, in_training[layer], strict=True):
            assert expected is not None
            assert found is not None
            assert torch.equal(found, expected)
