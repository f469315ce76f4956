"""The runbook's options, as they were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullarm.errors import UsageError
from nullarm.protocols.kv_communication.parameters import Channel


@dataclass(frozen=True)
class RunbookOptions:
    """What was asked for; None and empty where nothing was."""

    milestones: tuple[tuple[int, bool | None], ...] = ()
    """Which of 0, 1, 2, 3 and 5 to run, or not to."""
    chunk_size: int | None = None
    eval_smoke: bool = False
    smoke_limit: int = 50
    run_tag_prefix: str | None = None
    m3_kv_quant_scheme: str | None = None
    m3_proportions: tuple[float, ...] = ()
    m3_order_modes: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    base_model: str | None = None
    teacher_model: str | None = None
    checkpoint_dir: str | None = None
    checkpoint_root: Path | None = None
    """Where checkpoints lie that are named relatively, and copies of those that are named on the hub."""
    kv_quant_scheme: str | None = None
    kv_quant_axis: str | None = None
    kv_quant_eps: float | None = None
    kv_cache_proportion: float | None = None
    kv_cache_order_mode: str | None = None
    disable_kv_quant: bool = False

    @property
    def one_run(self) -> bool:
        """Whether a single channel was asked for.

        Axis and least scale alone ask for the source's quantised run, unless a grid or milestones are there to have
        them.
        """
        asked = (self.kv_quant_scheme, self.kv_cache_proportion, self.kv_cache_order_mode)
        if self.disable_kv_quant or any(value is not None for value in asked):
            return True
        several = self.m3_kv_quant_scheme is not None or any(wanted for n, wanted in self.milestones if n != 1)
        return not several and (self.kv_quant_axis is not None or self.kv_quant_eps is not None)

    @property
    def statistics(self) -> bool | None:
        """Whether milestone 1 was asked for; None where nothing was said."""
        return dict(self.milestones).get(1)

    @property
    def channel(self) -> Channel:
        """The channel of one run.

        Raises:
            UsageError: A scheme together with none.
        """
        if self.disable_kv_quant and self.kv_quant_scheme:
            raise UsageError("--disable-kv-quant and --kv-quant-scheme exclude each other", value=self.kv_quant_scheme)
        codec = "bf16" if self.disable_kv_quant else self.kv_quant_scheme or "int8"
        share = 1.0 if self.kv_cache_proportion is None else self.kv_cache_proportion
        order: Any = self.kv_cache_order_mode or "front"
        return Channel(codec=codec) if share == 1 else Channel(codec=codec, proportion=share, order=order)
