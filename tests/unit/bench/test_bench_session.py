from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from nullarm.bench.blocks import schedule
from nullarm.bench.contamination import judge_runs
from nullarm.bench.runs import Run, State, run_table, runs_of
from nullarm.bench.session import CALIBRATION_READINGS, Instruments, Session
from nullarm.bench.settings import BenchSettings
from nullarm.bench.subjects import Timing
from nullarm.bench.weather import Reading
from nullarm.errors import Preempted
from support.machines import QUIET, SimulatedMachine, Trouble

SETTINGS = BenchSettings(blocks=5, again_blocks=2, slowed_blocks=2)
LOAD = Trouble(foreign_cpus=1.0)


def machine(**more: object) -> SimulatedMachine:
    return SimulatedMachine(np.random.default_rng(0), **more)  # type: ignore[arg-type]


def session_on(
    where: SimulatedMachine,
    settings: BenchSettings = SETTINGS,
    *,
    run: Callable[[str], Timing] | None = None,
    sentinel: Callable[[], Reading] | None = None,
) -> Session:
    instruments = Instruments(sentinel or where.sentinel, where.watch)
    return Session(settings, run or where.run, instruments, rng=np.random.default_rng(7), clock=where.clock)


def flat(blocks: Iterable[list[Run]]) -> list[Run]:
    return [run for block in blocks for run in block]


def order(runs: Iterable[Run]) -> list[tuple[str, int, int, str]]:
    return [(run.phase, run.block, run.attempt, run.arm) for run in runs]


def test_a_quiet_session_is_its_schedule() -> None:
    where = machine(noise=0.001)
    session = session_on(where)
    runs = flat(session.blocks())
    blocks = schedule(SETTINGS, np.random.default_rng(7))
    assert order(runs) == [(block.phase, block.index, 1, arm) for block in blocks for arm in block.arms]
    assert [run.run for run in runs] == list(range(36))
    warm = sum(len(w.seconds_per_token) for w in session.warm_ups.values())
    assert where.asked[warm:] == [block.subject(arm) for block in blocks for arm in block.arms]
    assert [session.warm_ups[arm].flat for arm in ("control", "treatment")] == [True, True]
    assert runs_of(run_table(runs)) == runs


def test_a_run_holds_what_was_measured_around_it() -> None:
    (run, *_), *_ = session_on(machine(gpu=True, speeds={"control": 20.0, "treatment": 20.0, "slowed": 20.0})).blocks()
    assert run.tokens_per_s == pytest.approx(20, rel=0.01)
    assert (run.prefill_s, run.tokens) == (0.05, 64)
    assert run.decode_s == pytest.approx(64 / run.tokens_per_s)
    assert run.gemm_before == pytest.approx(2e-3, rel=0.3)
    assert run.copy_after == pytest.approx(1e-3, rel=0.3)
    assert (run.foreign_gpu_processes, run.throttle, run.temperature_c, run.power_w) == (0, "", 60, 250)
    assert (run.memory_clock_mhz, run.memory_used_bytes) == (2600, 1 << 30)


def test_contaminated_blocks_come_again_and_every_run_is_kept() -> None:
    where = machine(noise=0.001, trouble=lambda run: LOAD if 4 <= run < 9 else QUIET)
    runs = flat(session_on(where).blocks())
    blocks = schedule(SETTINGS, np.random.default_rng(7))
    assert [run.run for run in runs if run.state is State.CONTAMINATED] == [4, 5, 6, 7, 8]
    assert order(runs[36:]) == [(block.phase, block.index, 2, arm) for block in blocks[1:3] for arm in block.arms]
    assert runs[4].reasons.startswith("foreign CPU load: 1.")
    assert judge_runs(runs, SETTINGS.thresholds).state is State.CLEAN


def test_trouble_without_end_is_given_up_and_said() -> None:
    runs = flat(session_on(machine(trouble=lambda run: LOAD)).blocks())
    assert len(runs) == 36 * 3
    found = judge_runs(runs, SETTINGS.thresholds)
    assert found.state is State.CONTAMINATED
    assert found.reasons[0].startswith("9 of 9 blocks stayed contaminated (foreign CPU load in 108 runs")


@pytest.mark.parametrize("handed_over", [0, 1, 4, 9, 10])
def test_a_session_goes_on_from_its_runs(handed_over: int) -> None:
    """As if it had not been killed: the block contaminated in the first process is run again in the last."""
    whole = flat(session_on(machine(noise=0.001, trouble=lambda run: LOAD if run == 2 else QUIET)).blocks())
    first = machine(noise=0.001, trouble=lambda run: LOAD if run == 2 else QUIET)
    kept = runs_of(run_table(flat(islice(session_on(first).blocks(), handed_over))))
    second = machine(noise=0.001, trouble=lambda run: LOAD if run == 2 and not kept else QUIET)
    later = session_on(second)
    runs = kept + flat(later.blocks(kept))
    assert order(runs) == order(whole)
    assert [run.run for run in runs] == list(range(40))
    assert (np.diff([run.started_s for run in runs]) > 0).all()
    assert bool(later.warm_ups) == (handed_over < 10)  # with nothing left to do, nothing is warmed up


def test_it_stops_between_blocks_when_asked() -> None:
    asked = False
    blocks = session_on(machine()).blocks(should_stop=lambda: asked)
    assert len(flat(islice(blocks, 2))) == 8
    asked = True
    with pytest.raises(Preempted, match="asked to stop before block 3 of 9"):
        next(blocks)
    where = machine()
    with pytest.raises(Preempted, match="before block 1 of 9"):
        next(session_on(where).blocks(should_stop=lambda: True))
    assert where.asked == []  # not even a warm-up


def test_progress_counts_blocks_and_knows_of_re_runs() -> None:
    told: list[tuple[int, int, str]] = []
    where = machine(noise=0.001, trouble=lambda run: LOAD if run == 0 else QUIET)
    flat(session_on(where).blocks(progress=lambda *what: told.append(what)))
    assert [done for done, _, _ in told] == list(range(10))
    assert [total for _, total, _ in told] == [9] + [10] * 9
    assert told[-1][2].endswith(", attempt 2")


@pytest.mark.parametrize("speed", [4.0, 400.0])
def test_neither_the_arms_speed_nor_its_label_changes_a_state(speed: float) -> None:
    def states(run_on: Callable[[SimulatedMachine], Callable[[str], Timing]], **speeds: float) -> list[State]:
        where = machine(noise=0.03, gpu=True, trouble=lambda run: LOAD if run % 7 == 0 else QUIET)
        where.speeds |= speeds
        settings = SETTINGS.model_copy(update={"procedure": "fresh_process"})  # so that warm-ups draw no noise
        return [run.state for run in flat(session_on(where, settings, run=run_on(where)).blocks())]

    swap = {"treatment": "control", "control": "treatment", "slowed": "slowed"}
    usual = states(lambda where: where.run)
    assert states(lambda where: where.run, treatment=speed, slowed=speed) == usual
    assert states(lambda where: lambda arm: where.run(swap[arm]), treatment=speed) == usual
    assert {State.CLEAN, State.SUSPECT} <= set(usual)


@pytest.mark.parametrize("hungry", ["treatment", "control"])
def test_no_state_hangs_on_which_arm_draws_up_to_the_power_cap(hungry: str) -> None:
    def run_it(slow: int | None = None) -> list[Run]:
        where = machine(noise=0.001, spikes=0.0, gpu=True, hungry=hungry)

        def sentinel() -> Reading:
            reading = where.sentinel()
            assert reading.gemm_s is not None
            return replace(reading, gemm_s=1.1 * reading.gemm_s) if where.runs == slow else reading

        return flat(session_on(where, SETTINGS.model_copy(update={"again_blocks": 12}), sentinel=sentinel).blocks())

    runs = run_it()
    gemms, clocks = ([getattr(run, name) for run in runs] for name in ("gemm_after", "sm_clock_mhz"))
    assert min(max(values) / min(values) for values in (gemms, clocks)) > 1.1  # what is held against nobody
    assert {run.throttle for run in runs} == {"", "power cap"}
    assert {run.state for run in runs} == {State.CLEAN}
    # What was read at the cap is not what is usual: a GEMM slow by less than that is still seen elsewhere.
    last = max(run.run for run in runs if not run.throttle)
    found = run_it(last)[last]
    assert (found.state, found.reasons[:26]) == (State.CONTAMINATED, "slow sentinel: gemm before")


def test_an_arm_that_never_gets_flat_makes_every_run_of_its_process_suspect() -> None:
    def restless(where: SimulatedMachine) -> Callable[[str], Timing]:
        def run(arm: str) -> Timing:
            where.speeds["treatment"] *= 1.05 if arm == "treatment" else 1
            return where.run(arm)

        return run

    settings = SETTINGS.model_copy(update={"warmup_max_runs": 8})
    where = machine(noise=0.001, spikes=0.0)
    session = session_on(where, settings, run=restless(where))
    first = next(session.blocks())
    assert (session.warm_ups["treatment"].flat, session.warm_ups["control"].flat) == (False, True)
    rest = flat(session_on(machine(noise=0.001, spikes=0.0)).blocks(first))  # a process that did warm up
    assert {(run.arm, run.state, run.reasons) for run in first} == {
        (arm, State.SUSPECT, "warm-up: never got flat in 8 runs") for arm in ("treatment", "control")
    }
    assert {run.state for run in rest} == {State.CLEAN}
    where = machine(noise=0.001, spikes=0.0)
    runs = flat(session_on(where, settings, run=restless(where)).blocks())
    found = judge_runs(runs_of(run_table(runs)), settings.thresholds)
    assert found.state is State.SUSPECT
    assert found.reasons == ("36 of 36 runs are suspect (warm-up in 36 runs)",)


def test_a_sentinel_that_fails_makes_runs_suspect_and_ends_nothing() -> None:
    where = machine()
    readings = 0

    def sentinel() -> Reading:
        nonlocal readings
        readings += 1
        if readings == CALIBRATION_READINGS + 2:
            raise RuntimeError("out of memory")
        return where.sentinel()

    runs = flat(session_on(where, sentinel=sentinel).blocks())
    assert (runs[0].gemm_after, runs[0].copy_after) == (None, None)
    assert runs[0].gemm_before is not None
    assert runs[0].state is State.SUSPECT
    assert "no sentinel: gemm failed after the run" in runs[0].reasons
    assert "no sentinel" not in "".join(run.reasons for run in runs[1:])


def test_sentinels_that_never_work_leave_a_suspect_session() -> None:
    def broken() -> Reading:
        raise RuntimeError("no kernel image is available")

    where = machine()
    runs = flat(session_on(where, sentinel=broken).blocks())
    found = judge_runs(runs, SETTINGS.thresholds)
    assert found.state is State.SUSPECT
    assert "36 of 36 runs are suspect (no sentinel in 144 runs)" in found.reasons


def test_the_sources_procedure_warms_up_once_and_then_runs_four_and_four() -> None:
    where = machine(noise=0.001)
    session = session_on(where, BenchSettings(procedure="blocked"))
    runs = flat(session.blocks())
    assert where.asked == ["control", "treatment"] + ["control"] * 4 + ["treatment"] * 4
    assert [run.arm for run in runs] == where.asked[2:]
    assert {warm_up.flat for warm_up in session.warm_ups.values()} == {None}
    assert not any("warm-up" in run.reasons for run in runs)


def test_fresh_processes_are_not_warmed_up() -> None:
    where = machine(noise=0.001)
    session = session_on(where, SETTINGS.model_copy(update={"procedure": "fresh_process"}))
    assert len(flat(session.blocks())) == len(where.asked) == 36
    assert session.warm_ups == {}


def test_an_error_of_the_subject_ends_the_session_and_nothing_of_its_block_is_handed_over() -> None:
    where = machine(noise=0.001)

    def run(arm: str) -> Timing:
        if where.runs == 5:
            raise ValueError("the model is gone")
        return where.run(arm)

    blocks = session_on(where, run=run).blocks()
    assert len(next(blocks)) == 4
    with pytest.raises(ValueError, match="the model is gone"):
        next(blocks)
    assert list(blocks) == []
