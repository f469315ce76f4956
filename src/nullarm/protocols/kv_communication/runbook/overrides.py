"""The runbook's options as overrides of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nullarm.errors import UsageError, nearest
from nullarm.protocols.kv_communication.fuser.reference import HUB
from nullarm.protocols.kv_communication.parameters import Channel, KvCommunicationParameters, milestone
from nullarm.protocols.kv_communication.runbook.options import RunbookOptions
from nullarm.protocols.kv_communication.wire.codec import NAMED, codec_of
from nullarm.study.spec import Study

EVALUATED = (0, 2, 3, 5)
"""Milestones that have arms."""
PARITY_BITS = {"int8": 8, "int4": 4}
"""The schemes of the source's own post-training quantisation."""
Pair = tuple[str, Any]


def overrides(options: RunbookOptions, study: Study) -> list[str]:
    """`dotted.key=value` settings that say the same of this study.

    Raises:
        UsageError: Options that contradict each other, a codec that is not known or has no axis, no milestone to run.
    """
    _refuse_unknown_codecs(options, study)
    pairs = [*_models(options, study), *_checkpoints(options, study), *_plain(options), *_codec(options)]
    if options.one_run:
        pairs += _one_run(options, study)
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
    baselines = [arm for arm in study.arms if milestone(channels[arm], parameters.codec_table) == 0]
    factor = next(iter(study.factors))
    return list(dict.fromkeys([*baselines, name])), [] if name in study.arms else [f"factors.{factor}.{name}={{}}"]


def _refuse_unknown_codecs(options: RunbookOptions, study: Study) -> None:
    known = [*NAMED, *study.parameters.get("codecs", {})]
    asked = {"--kv-quant-scheme": options.kv_quant_scheme, "--m3-kv-quant-scheme": options.m3_kv_quant_scheme}
    for option, scheme in asked.items():
        if scheme is not None and scheme not in known:
            raise UsageError(f"{option} is no codec of {study.name}{nearest(scheme, known)}", value=scheme, valid=known)


def _models(options: RunbookOptions, study: Study) -> Iterator[Pair]:
    """The receiver, and the first sharer."""
    if options.base_model is not None:
        yield "parameters.receiver", options.base_model
    if options.teacher_model is not None:
        yield f"parameters.sharers.{_first(study, 'sharers')}", options.teacher_model


def _checkpoints(options: RunbookOptions, study: Study) -> Iterator[Pair]:
    """The first fuser's, and local copies of what the others name on the hub."""
    root, fusers = options.checkpoint_root, dict(study.parameters.get("fusers") or {})
    if options.checkpoint_dir is not None:
        name = _first(study, "fusers")
        local = root / options.checkpoint_dir if root else None
        directory = str(local) if local and local.is_dir() else options.checkpoint_dir
        yield f"parameters.fusers.{name}", None  # so that nothing is left of how it was trained
        yield f"parameters.fusers.{name}", {"sharer": fusers.pop(name)["sharer"], "directory": directory}
    for name, fuser in fusers.items():
        published = HUB.fullmatch(str(fuser.get("directory")))
        if root and published and (root / published["folder"]).is_dir():
            yield f"parameters.fusers.{name}.directory", str(root / published["folder"])


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
    """Those asked for, or the study's own without those switched off; statistics (1) go with any."""
    said = {number: wanted for number, wanted in options.milestones if wanted is not None}
    if not said:
        return
    own = study.parameters.get("milestones", (0, 1, 2, 3, 5))
    asked = [number for number in EVALUATED if said.get(number)]
    chosen = asked or [number for number in EVALUATED if number in own and said.get(number) is not False]
    if not chosen:
        off = [f"RUN_MILESTONE_{number}=0" for number, wanted in said.items() if not wanted]
        raise UsageError(
            "no milestone is left to run", value=" ".join(off), valid=[f"RUN_MILESTONE_{n}=1" for n in EVALUATED]
        )
    yield "parameters.milestones", sorted([*chosen, *([1] if said.get(1, 1 in own) else [])])


def _one_run(options: RunbookOptions, study: Study) -> Iterator[Pair]:
    channel = options.channel
    codecs = {**NAMED, **{name: codec_of(codec) for name, codec in study.parameters.get("codecs", {}).items()}}
    yield "parameters.grid", {"codecs": [channel.codec], "proportions": [channel.proportion], "orders": [channel.order]}
    yield "parameters.milestones", sorted({0, milestone(channel, codecs), *([1] if options.statistics else [])})


def _first(study: Study, key: str) -> str:
    known: dict[str, Any] = study.parameters.get(key) or {}
    if not known:
        raise UsageError(f"study {study.name} has no {key}", next_command=f"add `parameters.{key}` to its file")
    return str(next(iter(known)))
