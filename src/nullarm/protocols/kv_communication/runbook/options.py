"""The runbook's options as overrides of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nullarm.errors import UsageError
from nullarm.protocols.kv_communication.parameters import Channel, KvCommunicationParameters, milestone
from nullarm.study.spec import Study

MILESTONES = (0, 2, 3, 5)
PARITY_BITS = {"int8": 8, "int4": 4}
"""The schemes of the source's own post-training quantisation."""


@dataclass(frozen=True)
class RunbookOptions:
    """What was asked for; None and empty where nothing was."""

    milestones: tuple[tuple[int, bool | None], ...] = ()
    """Which of 0, 2, 3 and 5 to run, or not to."""
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
    kv_quant_scheme: str | None = None
    kv_quant_axis: str | None = None
    kv_quant_eps: float | None = None
    kv_cache_proportion: float | None = None
    kv_cache_order_mode: str | None = None
    disable_kv_quant: bool = False

    @property
    def one_run(self) -> bool:
        """Whether a single channel was asked for."""
        asked = (self.kv_quant_scheme, self.kv_cache_proportion, self.kv_cache_order_mode)
        return self.disable_kv_quant or any(value is not None for value in asked)

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
        order: Any = "front" if share == 1 else self.kv_cache_order_mode or "front"
        return Channel(codec=codec, proportion=share, order=order)


def overrides(options: RunbookOptions, study: Study) -> list[str]:
    """`dotted.key=value` settings that say the same of this study.

    Raises:
        UsageError: Options that contradict each other, or a scheme that has no axis.
    """
    pairs = [*_models(options, study), *_plain(options), *_codec(options)]
    if options.one_run:
        pairs += _one_run(options.channel)
    else:
        pairs += [*_grid(options), *_milestones(options, study)]
    return [f"{key}={json.dumps(value)}" for key, value in pairs]


def one_run_arms(channel: Channel, study: Study, parameters: KvCommunicationParameters) -> tuple[list[str], list[str]]:
    """The arms that one run takes, its own and the baselines; and the overrides that make its own an arm.

    Args:
        channel: The channel asked for.
        study: The study with all overrides but these.
        parameters: Its parameters.
    """
    channels = parameters.all_channels()
    name = next(name for name, known in channels.items() if known.model_dump() == channel.model_dump())
    baselines = [arm for arm in study.arms if milestone(channels[arm]) == 0]
    factor = next(iter(study.factors))
    return list(dict.fromkeys([*baselines, name])), [] if name in study.arms else [f"factors.{factor}.{name}={{}}"]


Pair = tuple[str, Any]


def _models(options: RunbookOptions, study: Study) -> Iterator[Pair]:
    """The receiver, the first sharer, the first fuser."""
    if options.base_model is not None:
        yield "parameters.receiver", options.base_model
    if options.teacher_model is not None:
        yield f"parameters.sharers.{_first(study, 'sharers')}", options.teacher_model
    if options.checkpoint_dir is not None:
        untrained: dict[str, Any] = {"training": None, "train_items": None, "start_from": None, "codecs": []}
        yield f"parameters.fusers.{_first(study, 'fusers')}", {"directory": options.checkpoint_dir, **untrained}


def _plain(options: RunbookOptions) -> Iterator[Pair]:
    if options.eval_smoke:
        yield "smoke", True
        yield "parameters.limit", options.smoke_limit
    for name in ("chunk_size", "max_new_tokens", "run_tag_prefix"):
        if (value := getattr(options, name)) is not None:
            yield f"parameters.{name}", value


def _codec(options: RunbookOptions) -> Iterator[Pair]:
    """The source's quantisation with another axis or least scale, under the name that the scheme has anyway."""
    changed = {"axis": options.kv_quant_axis, "eps": options.kv_quant_eps}
    said = {key: value for key, value in changed.items() if value is not None}
    if not said:
        return
    scheme = options.kv_quant_scheme or options.m3_kv_quant_scheme or "int8"
    if options.disable_kv_quant or scheme not in PARITY_BITS:
        raise UsageError(
            "--kv-quant-axis and --kv-quant-eps belong to the source's own schemes",
            value="--disable-kv-quant" if options.disable_kv_quant else scheme,
            valid=PARITY_BITS,
        )
    yield f"parameters.codecs.{scheme}", {"kind": "symmetric", "bits": PARITY_BITS[scheme], **said}


def _grid(options: RunbookOptions) -> Iterator[Pair]:
    if options.m3_kv_quant_scheme is not None:
        yield "parameters.grid.codecs", [options.m3_kv_quant_scheme]
    if options.m3_proportions:
        yield "parameters.grid.proportions", list(options.m3_proportions)
    if options.m3_order_modes:
        yield "parameters.grid.orders", list(options.m3_order_modes)


def _milestones(options: RunbookOptions, study: Study) -> Iterator[Pair]:
    """Those asked for, or the study's own without those switched off; statistics (1) as the study has them."""
    asked = {number for number, wanted in options.milestones if wanted}
    refused = {number for number, wanted in options.milestones if wanted is False}
    known: Sequence[int] = study.parameters.get("milestones", (0, 1, 2, 3, 5))
    if asked or refused:
        yield "parameters.milestones", [n for n in known if n not in refused and (not asked or n in asked or n == 1)]


def _one_run(channel: Channel) -> Iterator[Pair]:
    yield "parameters.grid", {"codecs": [channel.codec], "proportions": [channel.proportion], "orders": [channel.order]}
    yield "parameters.milestones", sorted({0, milestone(channel)})


def _first(study: Study, key: str) -> str:
    known: dict[str, Any] = study.parameters.get(key) or {}
    if not known:
        raise UsageError(f"study {study.name} has no {key}", next_command=f"add `parameters.{key}` to its file")
    return str(next(iter(known)))
