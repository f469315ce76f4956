"""Whether a run may be believed, from the weather around it alone.

Nothing here is told what the run measured or on which arm: a rule that looked at the arm's speed would throw away the
effect, or make one. The usual level of the sentinels and the clock is the session's own, median and 1.4826 MAD of all
readings so far but those of contaminated runs; what disturbs the whole session from its first moment on is found by
telemetry or not at all.

A GPU at its power cap lowers its clock by itself, and an arm that draws more power gets it there more often. So in a
run that saw the cap, a low clock and a slow GEMM are neither held against it nor remembered as usual: its state would
hang on the arm. The copy, other processes and every other throttling count as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nullarm.bench.blocks import attempts, judged
from nullarm.bench.runs import Run, State, worst
from nullarm.bench.settings import Thresholds
from nullarm.bench.weather import POWER_CAP, GpuLook, Reading, Weather

_MAD_TO_SD = 1.4826

Usual = Mapping[str, Sequence[float]]
"""What was read so far in runs that are not contaminated: `gemm` and `copy` in seconds, `sm_clock` in MHz; of runs at
the power cap only `copy`."""


@dataclass(frozen=True)
class Judged:
    """A state, and why it is not CLEAN: reasons of the form `cause: detail`."""

    state: State
    reasons: tuple[str, ...] = ()


def together(findings: Sequence[Judged]) -> Judged:
    """The worst state among them, with every reason."""
    return Judged(worst(f.state for f in findings), tuple(reason for f in findings for reason in f.reasons))


_Finding = tuple[State, str]


def judge_run(before: Reading, after: Reading, weather: Weather, usual: Usual, limits: Thresholds) -> Judged:
    """The state of one run.

    Args:
        before: Sentinels before it.
        after: Sentinels after it.
        weather: What was seen from the first sentinel to the last.
        usual: Earlier readings of this session on this machine.
        limits: Thresholds, each documented where it is declared.
    """
    capped = weather.gpu is not None and weather.gpu.power_capped
    findings = [*_sentinels(before, after, usual, limits, capped=capped), *_host(weather, limits)]
    if weather.gpu:
        findings += _gpu(weather.gpu, usual, limits)
    return Judged(worst(state for state, _ in findings), tuple(reason for _, reason in findings))


def _sentinels(
    before: Reading, after: Reading, usual: Usual, limits: Thresholds, *, capped: bool
) -> Iterator[_Finding]:
    slow: list[str] = []
    for moment, reading in (("before", before), ("after", after)):
        for name, seconds in (("gemm", reading.gemm_s), ("copy", reading.copy_s)):
            if seconds is None:
                yield State.SUSPECT, f"no sentinel: {name} failed {moment} the run"
            elif capped and name == "gemm":
                continue
            elif (excess := _excess(seconds, usual.get(name, ()), limits)) is not None:
                slow.append(f"{name} {moment} +{excess:.0%}")
    if slow:
        yield (State.SUSPECT if len(slow) == 1 else State.CONTAMINATED), f"slow sentinel: {', '.join(slow)}"


def _excess(seconds: float, usual: Sequence[float], limits: Thresholds) -> float | None:
    """By which share a reading is above the usual, when that is too much."""
    if not usual:
        return None
    middle = float(np.median(usual))
    spread = _MAD_TO_SD * float(np.median(np.abs(np.asarray(usual) - middle)))
    above = seconds - middle
    return above / middle if above > max(limits.slow * middle, limits.slow_spreads * spread) else None


def _gpu(gpu: GpuLook, usual: Usual, limits: Thresholds) -> Iterator[_Finding]:
    if gpu.silent:
        yield State.SUSPECT, "silent GPU: NVML told nothing of other processes or throttling"
    if gpu.foreign_processes:
        yield State.CONTAMINATED, f"foreign GPU process: {gpu.foreign_processes}"
    if slowing := sorted((gpu.throttle or frozenset()) - {POWER_CAP}):
        yield State.CONTAMINATED, f"throttled GPU: {', '.join(slowing)}"
    clocks = usual.get("sm_clock", ())
    if clocks and gpu.sm_clock_mhz is not None and not gpu.power_capped:
        drop = 1 - gpu.sm_clock_mhz / float(np.median(clocks))
        if drop > limits.clock_drop:
            yield State.SUSPECT, f"slow GPU clock: −{drop:.0%}"


def _host(weather: Weather, limits: Thresholds) -> Iterator[_Finding]:
    """A CPU does the work itself; one that only feeds a GPU is disturbed when others leave it no core."""
    foreign, idle = weather.foreign_cpus, weather.idle_cpus
    if foreign is None or idle is None or (weather.gpu and idle >= 1):
        return
    if foreign > limits.foreign_cpus:
        yield State.CONTAMINATED, f"foreign CPU load: {foreign:.1f} cores"
    elif foreign > limits.foreign_cpus_suspect and not weather.gpu:
        yield State.SUSPECT, f"foreign CPU load: {foreign:.1f} cores"


def judge_runs(runs: Sequence[Run], limits: Thresholds) -> Judged:
    """The state of a session as far as its weather goes: whether what is left after the re-runs can be believed.

    Whether A/A differs or the positive control was missed is not asked here, see `judging`.
    """
    tried = attempts(runs)
    clean = judged(runs)
    left = len(tried) - len({(run.phase, run.block) for run in clean})
    findings: list[_Finding] = []
    if left:
        state = State.CONTAMINATED if left / len(tried) > limits.blocks_left else State.SUSPECT
        causes = _causes(run for run in runs if run.state is State.CONTAMINATED)
        findings.append((state, f"{left} of {len(tried)} blocks stayed contaminated ({causes})"))
    suspect = [run for run in clean if run.state is State.SUSPECT]
    if clean and len(suspect) / len(clean) > limits.suspect_runs:
        findings.append((State.SUSPECT, f"{len(suspect)} of {len(clean)} runs are suspect ({_causes(suspect)})"))
    return Judged(worst(state for state, _ in findings), tuple(reason for _, reason in findings))


def _causes(runs: Iterable[Run]) -> str:
    counts = Counter(reason.partition(":")[0] for run in runs for reason in run.reasons.split("; ") if reason)
    return ", ".join(f"{cause} in {n} runs" if n > 1 else f"{cause} in 1 run" for cause, n in counts.most_common())
