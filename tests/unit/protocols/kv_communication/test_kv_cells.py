"""Stages run for real, on the built-in small world: what holds whatever the fuser has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kv_studies import TRAINING, study

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.errors import DatasetError
from nullarm.protocols.base import CellContext
from nullarm.protocols.kv_communication.cells import evaluate
from nullarm.protocols.kv_communication.channels.asked import Answered, Answerer, Asked
from nullarm.protocols.kv_communication.channels.by_cache import ByCache
from nullarm.protocols.kv_communication.communication.exchange import exchanges
from nullarm.protocols.kv_communication.communication.fuse import Contribution, source_index, together
from nullarm.protocols.kv_communication.communication.prefill import prefill
from nullarm.protocols.kv_communication.fuser import C2CProjector, load_fuser, save_fuser
from nullarm.protocols.kv_communication.planning import answered_task
from nullarm.protocols.kv_communication.tables import ITEMS, LATENCY, SECONDS, SENSITIVITY, STATISTICS
from nullarm.protocols.kv_communication.wire.message import encode_many
from nullarm.store.cell import CellWriter, read_failure
from nullarm.store.record import FinishedCell
from nullarm.store.study_store import StudyStore
from nullarm.study.spec import Study

CODECS = {"r": {"kind": "rotated", "bits": 2, "group": 16}, "e": {"kind": "asymmetric", "bits": 4, "entropy": True}}


def ran(root: Path, asked: Study) -> StudyStore:
    store = lay_down(prepare(asked), root)
    run(store, InlineEngine())
    return store


def found(store: StudyStore, arm: str) -> FinishedCell:
    cell = next(cell for cell in store.plan if cell.arm == arm)
    finished = store.finished(cell.id)
    assert finished is not None
    return finished


def table(store: StudyStore, arm: str) -> pa.Table:
    return found(store, arm).table(ITEMS)


def likelihoods(store: StudyStore, arm: str) -> np.ndarray[Any, Any]:
    return np.array(table(store, arm)["log_likelihood"])


def opened_fuser(root: Path, *, closed: bool = False) -> str:
    """A fuser of the small world's shape whose gates are all open, or all closed."""
    asked = study()
    store = ran(root / "train", asked)
    trained = store.finished(store.plan.cells[0].id)
    assert trained is not None
    fuser = load_fuser(trained.artefact("fuser"))
    for projector in fuser.projectors:
        assert isinstance(projector, C2CProjector)
        for half in ("key", "value"):
            projector.gate_logit(half).data.fill_(-1.0 if closed else 1.0)
    save_fuser(fuser, root / "fuser")
    return str(root / "fuser")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """Every kind of channel, through a fuser with open gates."""
    root = tmp_path_factory.mktemp("many")
    through: dict[str, Any] = {"fusers": ["open"]}
    half = {**through, "proportion": 0.5}
    channels: dict[str, Any] = {
        "sharer": {"via": "sharer"},
        "text": {"via": "text", "text_bytes": 5},
        "fp32": {**through, "codec": "fp32"},
        "again": {**through, "codec": "fp32", "alignment": "one_id"},
        "zeroed": {**through, "sharer_cache": "zeroed", "codec": "fp32"},
        "shuffled": {**through, "sharer_cache": "shuffled", "codec": "fp32"},
        "eight": {**through, "codec": "int8"},
        "two": {**through, "codec": "r"},
        "huffman": {**through, "codec": "e"},
        "mixed": {**through, "codec": "r", "allocation": {"bits": [1, 2, 4], "mean_bits": 2}},
        "legacy": {**through, "codec": "fp32", "fusion": "as_it_goes"},
        "pair": {"fusers": ["open", "open"], "combine": "parallel", "codec": "fp32"},
    }
    channels |= {
        order: {**half, "order": order, "codec": "fp32"}
        for order in ("front", "back", "middle", "random", "key_norm", "value_norm", "expected_attention", "delta",
                      "two_round")
    }  # fmt: skip
    asked = study(
        channels, codecs=CODECS, text={"max_new_tokens": 4},
        fusers={"open": {"sharer": "chat", "directory": opened_fuser(root)}},
    )  # fmt: skip
    return ran(root / "study", asked)


def test_reported_bytes_are_those_of_the_blobs_and_of_the_formula(
    many: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in many.plan:
        if cell.stage != "evaluate":
            continue
        rows = table(many, str(cell.arm))
        if cell.arm == "huffman":
            assert rows["formula_bytes"].null_count == len(rows)
        else:
            assert rows["formula_bytes"].to_pylist() == rows["message_bytes"].to_pylist(), cell.arm
    sent: list[int] = []

    def counted(*words: Any) -> list[bytes]:
        blobs = encode_many(*words)
        sent.extend(map(len, blobs))
        return blobs

    monkeypatch.setattr("nullarm.protocols.kv_communication.channels.by_cache.encode_many", counted)
    store = ran(tmp_path / "again", study({"eight": {"codec": "int8"}}, milestones=[2]))
    assert sorted(table(store, "eight")["message_bytes"].to_pylist()) == sorted(sent)
    assert len(sent) == 12


def test_a_full_precision_wire_changes_nothing(many: StudyStore) -> None:
    """`fp32` goes through bytes; here the same items are fused without any."""
    cell = next(cell for cell in many.plan if cell.arm == "fp32")
    channel = channel_of(many, cell.id)
    items = channel.answering.task.items("test")
    receiver, sender = channel.receiver, channel.senders[0]
    heard = exchanges([item.prompt for item in items], receiver.tokenizer, [sender.sharer.tokenizer])
    own = prefill(receiver.model, [e.receiver_ids[:-1] for e in heard])
    sent = prefill(sender.sharer.model, [e.sharers[0].ids for e in heard])
    source = source_index([e.sharers[0] for e in heard], sent.mask)
    with torch.no_grad():
        fused = together(own, [Contribution(sender.fuser, dict(enumerate(sent.kv)), source)])
    questions = channel.answering.questions(receiver, items, [e.receiver for e in heard])
    direct = [likelihood for _, _, likelihood, _ in channel.answering.answers(receiver, fused, questions)]

    np.testing.assert_array_equal(np.array(direct), np.array(rebatched(channel, items)))


def channel_of(store: StudyStore, cell_id: str) -> ByCache:
    """The channel of a cell, as its worker makes it."""
    cell = store.plan.by_id[cell_id]
    needs = {role: f for role, need in cell.needs.items() if (f := store.finished(need))}
    writer: CellWriter = None  # type: ignore[assignment]  # nothing is written
    context = CellContext(cell, writer, needs, lambda: False, lambda done, total, note: None)
    made = evaluate._channel(context, evaluate._answering(context))
    assert isinstance(made, ByCache)
    return made


def rebatched(channel: ByCache, items: Any, size: int = 100) -> list[float | None]:
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    return [a.log_likelihood for batch in batches for a in channel.answer([Asked(item, item) for item in batch])]


def test_the_size_of_a_batch_does_not_matter(many: StudyStore) -> None:
    for arm in ("fp32", "two", "expected_attention", "two_round", "random", "legacy"):
        cell = next(cell for cell in many.plan if cell.arm == arm)
        channel = channel_of(many, cell.id)
        items = channel.answering.task.items("test")[:6]
        together = np.array(rebatched(channel, items), dtype=float)
        for size in (1, 4):
            alone = np.array(rebatched(channel, items, size), dtype=float)
            np.testing.assert_allclose(alone, together, atol=1e-4, err_msg=arm)


def test_with_all_gates_closed_the_receiver_is_alone(tmp_path: Path) -> None:
    fuser = {"shut": {"sharer": "chat", "directory": opened_fuser(tmp_path, closed=True)}}
    store = ran(tmp_path / "study", study({"shut": {"fusers": ["shut"], "codec": "fp32"}}, fusers=fuser))

    np.testing.assert_allclose(likelihoods(store, "shut"), likelihoods(store, "alone"), atol=1e-5)
    empty = table(store, "shut")["message_bytes"].to_pylist()
    assert max(empty) < 64  # a header, and nothing of the cache


def test_open_gates_and_every_control_change_the_answers(many: StudyStore) -> None:
    whole = likelihoods(many, "fp32")
    for arm in ("alone", "sharer", "zeroed", "shuffled", "two", "front", "back", "pair", "text"):
        assert not np.allclose(likelihoods(many, arm), whole), arm
    np.testing.assert_allclose(likelihoods(many, "again"), whole, atol=1e-5)  # one tokeniser: nothing to align
    np.testing.assert_allclose(likelihoods(many, "legacy"), whole, atol=1e-4)  # one section: nothing goes before


def test_half_of_the_tokens_take_half_of_the_bytes(many: StudyStore) -> None:
    whole, half = table(many, "fp32"), table(many, "back")
    for tokens, kept, all_bytes, some_bytes in zip(
        whole["sent_tokens"].to_pylist(), half["sent_tokens"].to_pylist(),
        whole["message_bytes"].to_pylist(), half["message_bytes"].to_pylist(), strict=True,
    ):  # fmt: skip
        assert kept == tokens // 2
        per_token = 3 * 2 * 2 * 16 * 4  # layers × halves × heads × width × bytes of fp32
        assert all_bytes - some_bytes == (tokens - kept) * per_token
    asked = table(many, "two_round")["request_bytes"].to_pylist()
    assert min(asked) > 13
    assert set(table(many, "back")["request_bytes"].to_pylist()) == {0}


def test_orders_choose_different_tokens(many: StudyStore) -> None:
    seen = {tuple(likelihoods(many, order).round(6)) for order in ("front", "back", "middle", "random", "key_norm")}
    assert len(seen) == 5


def test_text_is_counted_in_bytes_of_utf8(many: StudyStore) -> None:
    sizes = table(many, "text")["message_bytes"].to_pylist()
    assert 0 < max(sizes) <= 5


def test_calibration_measures_every_codec_and_every_width_that_is_allocated(many: StudyStore) -> None:
    cells = [c for c in many.plan if c.stage == "calibrate" and str(c.slice).startswith("open-")]
    finished = [f for c in cells if (f := many.finished(c.id)) is not None]
    assert len(finished) == len(cells)
    statistics = [row for f in finished for row in f.table(STATISTICS).to_pylist()]
    allocated = [f for f in finished if SENSITIVITY in f.record.artefacts]
    sensitivities = [row for f in allocated for row in f.table(SENSITIVITY).to_pylist()]

    assert {row["codec"] for row in statistics} == {"fp32", "int8", "r", "e"}
    assert len(statistics) == 4 * 6
    assert {(row["codec"], row["bits"]) for row in sensitivities} == {("r", 1), ("r", 2), ("r", 4)}
    errors = {row["codec"]: row["relative_error"] for row in statistics}
    assert errors["fp32"] == 0 < errors["int8"] < errors["r"]


def test_seconds_stand_apart_from_what_is_the_same_in_every_run(many: StudyStore) -> None:
    finished = found(many, "eight")
    assert finished.table(LATENCY).column_names == ["item", *SECONDS]
    assert not set(SECONDS) & set(finished.table(ITEMS).column_names)
    assert np.array(finished.table(LATENCY)["encode_s"]).min() > 0


def test_the_report_and_the_runbooks_files_are_written(many: StudyStore) -> None:
    concluded = conclude(many)

    assert "KV COMMUNICATION" in concluded.closing
    assert concluded.report.stat().st_size > 10_000
    output = many.paths.output
    assert (output / "budget_curve.csv").read_text().startswith("run_tag,dataset,kv_quant_scheme,kv_cache_proportion")
    assert (output / "budget_curve_world_relations.png").read_bytes().startswith(b"\x89PNG")
    assert list(output.glob("step_0_baselines/*")) and list(output.glob("step_1_kv_ptq/*"))  # noqa: PT018


class Faulty(Answerer):
    """Cannot be asked some items."""

    def __init__(self, bad: set[str]) -> None:
        self.bad, self.batches = bad, [0]

    def answer(self, batch: Any) -> list[Answered]:
        self.batches.append(len(batch))
        if spoilt := [a.item.id for a in batch if a.item.id in self.bad]:
            raise DatasetError("cannot be asked", value=spoilt[0])
        return [Answered(a.item, True, "A") for a in batch]


@pytest.mark.parametrize(("bad", "outcome"), [(1, "ok"), (3, "invalid")])
def test_an_error_is_a_wrong_answer_and_too_many_make_the_cell_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, outcome: str
) -> None:
    asked = study(milestones=[0], error_share=0.1)
    task = answered_task(asked.parameters["tasks"][0])
    ids = [item.id for item in task.items("test")]
    monkeypatch.setattr(evaluate, "_channel", lambda context, answering: Faulty(set(ids[:bad])))
    store = ran(tmp_path / "study", asked)

    rows, record = table(store, "alone"), found(store, "alone").record
    assert record.outcome == outcome
    assert record.metrics["accuracy"] == pytest.approx((12 - bad) / 12)
    assert record.metrics["errors"] == bad
    assert len(rows) == 12
    assert [e is not None for e in rows["error"].to_pylist()] == [i < bad for i in range(12)]
    assert "DatasetError: cannot be asked; got" in rows["error"].to_pylist()[0]
    if outcome == "invalid":
        assert f"3 of 12 items ended in an error, the first, world_relations:{ids[0]}: DatasetError" in str(
            record.reason
        )


def test_a_crash_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crashing(Faulty):
        def answer(self, batch: Any) -> list[Answered]:
            raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(evaluate, "_channel", lambda context, answering: Crashing(set()))
    store = lay_down(prepare(study(milestones=[0])), tmp_path / "study")
    run(store, InlineEngine())

    cell = next(cell for cell in store.plan if cell.arm == "alone")
    assert store.finished(cell.id) is None
    assert not list(store.paths.cell(cell.id).chunks.glob("items-*"))
    assert "OutOfMemoryError: the device is full" in str(read_failure(store.paths.cell(cell.id)))


def test_shuffled_items_come_from_another_cluster() -> None:
    items = answered_task({"kind": "world_relations"}).items("test")[:40]
    others = {a.item.id: a.other for a in evaluate._asked(items, 0, "shuffled")}

    assert all(others[item.id].cluster != item.cluster for item in items)
    assert len({other.id for other in others.values()}) > 10
    with pytest.raises(DatasetError, match="needs items of two clusters"):
        evaluate._asked(items[:1], 0, "shuffled")


def test_generated_answers_are_extracted_and_have_no_likelihood(tmp_path: Path) -> None:
    store = ran(tmp_path / "study", study(answer_by="generation", max_new_tokens=3, milestones=[0]))

    rows = table(store, "c2c")
    assert "log_likelihood" not in rows.column_names
    assert min(rows["output_tokens"].to_pylist()) > 0


def test_a_fuser_is_tuned_for_codecs_from_where_it_was_with_its_gates_fixed(tmp_path: Path) -> None:
    fusers = {"qat": {"sharer": "chat", "start_from": "main", "codecs": ["r", "int8"], "training": TRAINING}}
    store = ran(tmp_path / "study", study({"tuned": {"fusers": ["qat"]}}, fusers=fusers, codecs=CODECS))

    by_slice = {cell.slice: store.finished(cell.id) for cell in store.plan if cell.stage == "train_fuser"}
    first, second = by_slice["main"], by_slice["qat"]
    assert first is not None
    assert second is not None
    before, after = load_fuser(first.artefact("fuser")), load_fuser(second.artefact("fuser"))
    changed = {
        name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not a.equal(b)
    }
    assert changed
    assert not {name for name in changed if "gate_logit" in name}
