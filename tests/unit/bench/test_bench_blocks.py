from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nullarm.bench.blocks import Block, due, judged, schedule
from nullarm.bench.runs import Arm, Phase, Run, State, run_table, runs_of
from nullarm.bench.settings import BenchSettings, Thresholds

SETTINGS = BenchSettings(blocks=40, again_blocks=20, slowed_blocks=10)
RUN = Run(
    run=0, phase="contrast", block=0, attempt=1, arm="control", prefill_s=0.1, decode_s=1.6, tokens_per_s=40.0,
    tokens=64, state=State.CLEAN, reasons="", gemm_before=0.002, gemm_after=0.002, copy_before=0.001, copy_after=0.001,
    foreign_cpus=0.0, started_s=0.0,
)  # fmt: skip


def runs_of_block(block: Block, attempt: int, *, contaminated: bool = False) -> list[Run]:
    states = [State.CONTAMINATED if contaminated and i == 1 else State.SUSPECT for i in range(len(block.arms))]
    mine = replace(RUN, phase=block.phase, block=block.index, attempt=attempt)
    return [replace(mine, arm=arm, state=state) for arm, state in zip(block.arms, states, strict=True)]


def test_every_block_is_abba_or_baab_and_both_occur() -> None:
    orders = Counter("".join(arm[0] for arm in block.arms) for block in schedule(SETTINGS, np.random.default_rng(0)))
    assert set(orders) == {"tcct", "cttc"}
    assert min(orders.values()) > 20


def test_phases_have_their_counts_and_are_mixed() -> None:
    blocks = schedule(SETTINGS, np.random.default_rng(0))
    assert Counter(block.phase for block in blocks) == {"contrast": 40, "again": 20, "slowed": 10}
    assert len({(block.phase, block.index) for block in blocks}) == 70
    places = [
        [i for i, block in enumerate(blocks) if block.phase == phase] for phase in ("contrast", "again", "slowed")
    ]
    assert all(20 < np.mean(place) < 50 for place in places)


def test_the_order_is_the_seeds() -> None:
    first, again, other = (schedule(SETTINGS, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_the_sources_order_is_all_control_then_all_treatment() -> None:
    (block,) = schedule(BenchSettings(procedure="blocked"), np.random.default_rng(0))
    assert block == Block("contrast", 0, ("control",) * 4 + ("treatment",) * 4)


@pytest.mark.parametrize(
    ("phase", "subjects"),
    [("contrast", "treatment control"), ("again", "control control"), ("slowed", "slowed control")],
)
def test_who_stands_in_for_the_arms(phase: Phase, subjects: str) -> None:
    arms: tuple[Arm, Arm] = ("treatment", "control")
    assert " ".join(Block(phase, 0, arms).subject(arm) for arm in arms) == subjects


def test_contaminated_blocks_are_run_again_after_all_others() -> None:
    blocks = schedule(BenchSettings(), np.random.default_rng(0))[:3]
    runs = runs_of_block(blocks[0], 1, contaminated=True)
    assert due(blocks, runs, 2) == [(blocks[1], 1), (blocks[2], 1), (blocks[0], 2)]
    runs += runs_of_block(blocks[1], 1) + runs_of_block(blocks[2], 1, contaminated=True)
    assert due(blocks, runs, 2) == [(blocks[0], 2), (blocks[2], 2)]
    runs += runs_of_block(blocks[0], 2, contaminated=True) + runs_of_block(blocks[2], 2)
    assert due(blocks, runs, 2) == [(blocks[0], 3)]
    assert due(blocks, runs, 1) == []
    runs += runs_of_block(blocks[0], 3, contaminated=True)
    assert due(blocks, runs, 2) == []


def test_judged_is_the_last_attempt_unless_contaminated() -> None:
    first, second = schedule(BenchSettings(), np.random.default_rng(0))[:2]
    again = runs_of_block(first, 2)
    runs = [*runs_of_block(first, 1, contaminated=True), *runs_of_block(second, 1, contaminated=True), *again]
    assert judged(runs) == again
    assert judged([]) == []


def test_a_table_of_runs_is_read_back_and_its_types_do_not_hang_on_nulls() -> None:
    runs = [RUN, replace(RUN, run=1, state=State.CONTAMINATED, reasons="a: b; c: d", foreign_gpu_processes=2)]
    assert runs_of(run_table(runs)) == runs
    assert run_table(runs[:1]).schema == run_table(runs).schema == run_table([]).schema
    types = {field.name: str(field.type) for field in run_table([]).schema}
    assert types["power_w"] == types["memory_clock_mhz"] == types["tokens_per_s"] == "double"
    assert types["foreign_gpu_processes"] == types["memory_used_bytes"] == types["run"] == "int64"
    assert types["throttle"] == types["state"] == types["arm"] == types["phase"] == "string"


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 5"):
        BenchSettings(blocks=4)
    for control in ("again_blocks", "slowed_blocks"):
        with pytest.raises(ValueError, match=f"{control}\n.*greater than or equal to 2"):
            BenchSettings.model_validate({control: 1})  # of one block nothing can be tested
    with pytest.raises(ValueError, match="nothing could be only suspect"):
        Thresholds(foreign_cpus=0.1)
