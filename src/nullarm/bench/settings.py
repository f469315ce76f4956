"""What a session of measurements does, and from where on a run is no longer believed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nullarm.study.spec import Strict


class Thresholds(Strict):
    """When the weather around a run makes it SUSPECT or CONTAMINATED; never what the run itself measured."""

    slow: float = Field(default=0.05, gt=0, lt=1)
    """Share by which a sentinel must be above the session's median before its reading counts as slow. One slow reading
    of a run's four (GEMM and copy, before and after) makes it SUSPECT, two make it CONTAMINATED."""
    slow_spreads: float = Field(default=3.0, gt=0)
    """How many of the session's own spreads (1.4826 MAD) it must be above the median as well."""
    foreign_cpus: float = Field(default=0.5, gt=0)
    """Cores that other processes took of those this one may use: above it a run is CONTAMINATED; on a GPU only when
    less than one core was left idle."""
    foreign_cpus_suspect: float = Field(default=0.2, gt=0)
    """The same for SUSPECT, on a CPU."""
    clock_drop: float = Field(default=0.05, gt=0, lt=1)
    """Share by which the SM clock may be below the session's median before a run is SUSPECT, unless the power cap
    lowered it. Throttling for heat or by the hardware's brakes, and any other process on the GPU, make it CONTAMINATED
    outright."""
    blocks_left: float = Field(default=0.1, ge=0, lt=1)
    """Share of blocks that may stay contaminated after their re-runs in a session that is only SUSPECT."""
    suspect_runs: float = Field(default=0.25, gt=0, le=1)
    """Share of SUSPECT runs above which the session is SUSPECT."""

    @model_validator(mode="after")
    def _suspicion_comes_first(self) -> Thresholds:
        if self.foreign_cpus_suspect > self.foreign_cpus:
            raise ValueError("foreign_cpus_suspect is above foreign_cpus: nothing could be only suspect")
        return self


class BenchSettings(Strict):
    """How two arms are measured against each other."""

    procedure: Literal["abba", "blocked", "fresh_process"] = "abba"
    """`abba`: both arms resident, blocks of four runs, ABBA or BAAB at random. `fresh_process`: the same, every run in
    a process of its own and without warm-up. `blocked`: the source's, one warm-up each, then four control and four
    treated runs, nothing else; it has neither A/A blocks nor a positive control, so it can show no null."""
    blocks: int = Field(default=10, ge=5, le=1000)
    """Blocks of treatment against control, two pairs each."""
    again_blocks: int = Field(default=4, ge=2, le=1000)
    """Blocks of the control against itself (A/A)."""
    slowed_blocks: int = Field(default=4, ge=2, le=1000)
    """Blocks of the slowed control against the control (positive control)."""
    slowdown: float = Field(default=0.05, gt=0, lt=1)
    """Share of time that the slowed control takes more for every token."""
    prompt: str = Field(default="Explain the second law of thermodynamics in one paragraph.", min_length=1)
    """What is continued."""
    tokens: int = Field(default=64, ge=2)
    """Tokens decoded in a run."""
    compile: bool = False
    """Run each step of decoding as one CUDA graph; on a GPU only, and an error where a model's step cannot be one."""
    retries: int = Field(default=2, ge=0, le=20)
    """How often a contaminated block is run again."""
    warmup_max_runs: int = Field(default=30, ge=1, le=1000)
    """Runs of each arm after which warming up is given up, and all runs are SUSPECT; below 6 nobody asks for it."""
    thresholds: Thresholds = Thresholds()
    """When a run is no longer believed."""

    @property
    def processes(self) -> int:
        """Processes of the session that are on the GPU at a time: its own, and that of a run where it has one."""
        return 2 if self.procedure == "fresh_process" else 1
