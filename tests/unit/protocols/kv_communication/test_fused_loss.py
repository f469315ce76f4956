"""What a fuser is trained to lower, and that precision and processes reach all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from communication_models import open_fuser, receiver, sharer
from small_lessons import intact, lessons, loss_of, trained

from nullarm.errors import Preempted
from nullarm.protocols.kv_communication.cells.fused_loss import FusedLoss
from nullarm.protocols.kv_communication.cells.lessons import collated
from nullarm.protocols.kv_communication.communication.prefill import Prefilled
from nullarm.protocols.kv_communication.fuser.projector import SourceKV
from nullarm.training.batches import target_count

SCRIPT = Path(__file__).with_name("fuser_in_two_processes.py")


def test_the_loss_of_a_batch_is_the_mean_over_its_answers_tokens() -> None:
    loss, given = loss_of(), lessons()
    whole = loss(collated(given))
    single = [loss(collated([lesson])) * len(lesson.answer) for lesson in given]

    torch.testing.assert_close(whole, torch.stack(single).sum() / 6, rtol=1e-4, atol=1e-5)
    assert target_count(collated(given)) == 6


def test_with_closed_gates_it_is_the_receivers_own_loss() -> None:
    mine, theirs = receiver(), sharer()
    fuser, lesson = open_fuser(theirs, mine, gates=-1.0), lessons()[0]
    ids = torch.tensor([[*lesson.exchange.receiver_ids, *lesson.answer]])
    logits = mine(input_ids=ids).logits[0, len(lesson.exchange.receiver_ids) - 1 : -1]

    expected = F.cross_entropy(logits, torch.tensor(lesson.answer))
    found = FusedLoss(fuser, mine, theirs, intact)(collated([lesson]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_the_wire_does_is_trained_on() -> None:
    mine, theirs = receiver(), sharer()
    fuser, batch = open_fuser(theirs, mine), collated(lessons())

    def silent(cache: Prefilled) -> dict[int, SourceKV]:
        return {n: (key.zero_(), value.zero_()) for n, (key, value) in enumerate(cache.kv)}

    heard = FusedLoss(fuser, mine, theirs, intact)(batch)
    assert not FusedLoss(fuser, mine, theirs, silent)(batch).allclose(heard)


def test_it_holds_the_fuser_and_nothing_of_the_frozen_models() -> None:
    mine, theirs = receiver(), sharer()
    loss = FusedLoss(open_fuser(theirs, mine), mine, theirs, intact).train()

    assert [*loss.state_dict()] == [f"fuser.{name}" for name in loss.fuser.state_dict()]
    assert loss.fuser.training
    assert not mine.training
    assert not theirs.training


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_arithmetic_of_training_has_the_precision_that_was_asked_for(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    loss, seen = loss_of(), set()
    for name, module in loss.fuser.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _m, _given, made, name=name: seen.add((name, made.dtype)))
    before = [p.detach().clone() for p in loss.parameters()]
    trained(loss, tmp_path, precision=precision)

    assert {d for _, d in seen} == {dtype}
    assert any("proj_out" in name for name, _ in seen)
    assert {p.dtype for p in loss.parameters()} == {torch.float32}
    assert not any(torch.equal(p, was) for p, was in zip(loss.parameters(), before, strict=True))


def test_in_bf16_the_loss_is_nearly_that_of_fp32() -> None:
    loss, batch = loss_of(), collated(lessons())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(batch)
    torch.testing.assert_close(rounded, loss(batch), rtol=0.02, atol=0)
    assert rounded.dtype == torch.float32


def test_a_run_that_was_stopped_goes_on_to_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    undisturbed, resumed = loss_of(), loss_of()
    expected = trained(undisturbed, tmp_path / "a")
    asked = iter(range(100))
    with pytest.raises(Preempted):
        trained(resumed, tmp_path / "b", should_stop=lambda: next(asked) >= 2)
    fresh = loss_of()
    found = trained(fresh, tmp_path / "b")

    assert found.resumed_from == 2
    assert found.losses == expected.losses
    for (name, end), (same, again) in zip(undisturbed.named_parameters(), fresh.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(end, again), name


def in_two_processes(directory: Path, gates: str) -> list[dict[str, Any]]:
    directory.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(directory), gates],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((directory / f"rank{n}.json").read_text()) for n in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["fresh", "fixed"])
def test_two_processes_end_with_one_fuser(tmp_path: Path, gates: str) -> None:
    first, second = in_two_processes(tmp_path / gates, gates)
    assert first == second
    assert first["processes"] == 2
    assert len(first["losses"]) == 4
    assert first["changed"] > 20
