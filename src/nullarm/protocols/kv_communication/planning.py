"""The cells of a communication study: per seed fusers, their calibration, one evaluation per arm and data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nullarm.errors import ModelError, StudyError, nearest
from nullarm.models.facts import parameter_count
from nullarm.models.reference import content_id
from nullarm.models.tasks.base import AnsweredTask
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.kv_communication.fuser.reference import fuser_content_id
from nullarm.protocols.kv_communication.geometry import Geometry
from nullarm.protocols.kv_communication.parameters import (
    LEFT_OUT,
    Channel,
    FuserSettings,
    KvCommunicationParameters,
    milestone,
)
from nullarm.protocols.kv_communication.tables import CALIBRATE, EVALUATE, TRAIN_FUSER
from nullarm.sites.devices import find_device
from nullarm.study.identity import identifying
from nullarm.study.plan import Cell, Estimate
from nullarm.study.spec import Study

METRICS = ("accuracy", "log_likelihood")
BYTES_PER_ITEM = 120
"""Of a row in the per-item table, compressed."""
LOAD_BYTES_PER_S = 1e9
"""Weights from disk to device."""


def kv_communication_cells(study: Study, parameters: KvCommunicationParameters, version: int) -> list[Cell]:
    """All cells, in an order in which each follows what it needs.

    Raises:
        StudyError: An arm has no channel, or a channel no arm; the metric is not measured.
        DatasetError: A task is wrong, or has no answers to compare with.
        ModelError: A model reference is wrong.
    """
    _match_arms(study, parameters)
    metrics = METRICS[:1] if parameters.answer_by == "generation" else METRICS
    if study.analysis.metric not in metrics:
        hint = nearest(study.analysis.metric, metrics)
        raise StudyError(f"analysis.metric {study.analysis.metric!r} is not measured{hint}", valid=metrics)
    return list(_Planner(study, parameters, version).cells())


def datasets(parameters: KvCommunicationParameters) -> dict[str, AnsweredTask]:
    """The tasks by name: the kind, with a number from the second of a kind on.

    Raises:
        DatasetError: A task is wrong.
        StudyError: A task has no answers to compare with.
    """
    named: dict[str, AnsweredTask] = {}
    for settings in parameters.tasks:
        kind = str(settings.get("kind"))
        before = sum(name.partition("-")[0] == kind for name in named)
        named[f"{kind}-{before + 1}" if before else kind] = answered_task(settings)
    return named


def answered_task(settings: Mapping[str, Any]) -> AnsweredTask:
    """A task with answers in words.

    Raises:
        DatasetError: A setting is wrong.
        StudyError: Its answers are no words.
    """
    task = make_task(settings)
    if not isinstance(task, AnsweredTask):
        raise StudyError(f"task {settings['kind']!r} has no answers in words", valid="a task that asks and is answered")
    return task


def _match_arms(study: Study, parameters: KvCommunicationParameters) -> None:
    channels = parameters.all_channels()
    for name in study.arms:
        if name not in channels:
            raise StudyError(f"{study.name}: {name!r} is an arm without a channel", valid=sorted(channels))
    if unarmed := [name for name in parameters.channels if name not in study.arms]:
        raise StudyError(
            f"{study.name}: {unarmed[0]!r} is a channel without an arm",
            valid=sorted(study.arms),
            next_command="give `factors` and `parameters.channels` the same names",
        )
    if repeated := [name for name, arm in study.arms.items() if arm.replicates > 1]:
        raise StudyError(
            f"arm {repeated[0]!r}: an arm is drawn once per seed", value=study.arms[repeated[0]].replicates
        )


@dataclass(frozen=True)
class _Planner:
    study: Study
    parameters: KvCommunicationParameters
    version: int

    def cells(self) -> Any:
        for seed in self.study.seeds:
            trained: dict[str, Cell] = {}
            for name in self._fusers_used:
                if self.parameters.fusers[name].directory is None:
                    trained[name] = self._train(name, seed, trained)
            calibrated = {name: self._calibrate(name, seed, trained) for name in self._calibrated}
            yield from trained.values()
            yield from calibrated.values()
            for arm, channel in self._channels.items():
                for dataset, task in self._tasks.items():
                    yield self._evaluate(arm, channel, dataset, task, seed, trained, calibrated)

    @cached_property
    def _tasks(self) -> dict[str, AnsweredTask]:
        return datasets(self.parameters)

    @cached_property
    def _training_task(self) -> AnsweredTask:
        settings = self.parameters.training_task
        return next(iter(self._tasks.values())) if settings is None else answered_task(settings)

    @cached_property
    def _channels(self) -> dict[str, Channel]:
        """The arms of the milestones that are to be run."""
        return {
            name: channel
            for name, channel in self.parameters.all_channels().items()
            if milestone(channel) in self.parameters.milestones
        }

    @cached_property
    def _fusers_used(self) -> list[str]:
        """By the arms, or started from; in the order of the study, in which each follows what it starts from."""
        used = {name for channel in self._channels.values() for name in self.parameters.fusers_of(channel)}
        for name in reversed(self.parameters.fusers):
            if name in used and (first := self.parameters.fusers[name].start_from):
                used.add(first)
        return [name for name in self.parameters.fusers if name in used]

    @cached_property
    def _calibrated(self) -> list[str]:
        """Fusers whose streams are measured: those of a quantising arm, where milestone 1 or an allocation asks."""
        found = {
            name
            for channel in self._channels.values()
            if channel.via == "fuser" and (channel.allocation or 1 in self.parameters.milestones)
            for name in self.parameters.fusers_of(channel)
        }
        return [name for name in self._fusers_used if name in found]

    def _train(self, name: str, seed: int, trained: Mapping[str, Cell]) -> Cell:
        fuser = self.parameters.fusers[name]
        training = identifying(fuser, {})["training"]
        outside = {key: training.pop(key) for key in ("checkpoint_every", "keep_checkpoints", "gradient_checkpointing")}
        asked = {
            "training": training,
            "train_items": fuser.train_items,
            "shape": fuser.shape.model_dump(mode="json") if fuser.start_from is None else None,
            "codecs": [self._codec(codec) for codec in fuser.codecs],
            **self._kept("chat_template", "answer_prefix", "dtype"),
        }
        return self._cell(
            TRAIN_FUSER, seed, asked, [name], slice=name,
            inputs=self._models(fuser.sharer) | {"task": self._training_task.content_id()},
            needs={"start_from": trained[fuser.start_from].id} if fuser.start_from else {},
            settings={"training": outside, "task": self._training_settings},
            estimate=self._training(fuser),
        )  # fmt: skip

    def _calibrate(self, name: str, seed: int, trained: Mapping[str, Cell]) -> Cell:
        used = [c for c in self._channels.values() if name in self.parameters.fusers_of(c)]
        codecs = sorted({c.codec for c in used})
        widths: dict[str, list[int]] = {}
        for channel in used:
            if channel.allocation:
                widths[channel.codec] = sorted({*widths.get(channel.codec, []), *channel.allocation.bits})
        asked = {
            "codecs": {codec: self._codec(codec) for codec in codecs},
            "widths": widths,
            **self._kept("calibration_items", "chat_template", "answer_prefix", "dtype"),
        }
        return self._cell(
            CALIBRATE, seed, asked, [name], slice=name,
            inputs=self._models(self.parameters.fusers[name].sharer) | {"task": self._training_task.content_id()},
            needs=self._needed_fusers([name], trained),
            settings={"task": self._training_settings},
            estimate=self._forwards(
                self.parameters.calibration_items * (1 + 10 * sum(map(len, widths.values()))),
                [self.parameters.fusers[name].sharer],
            ),
        )  # fmt: skip

    def _evaluate(
        self, arm: str, channel: Channel, dataset: str, task: AnsweredTask, seed: int, trained: Mapping[str, Cell],
        calibrated: Mapping[str, Cell],
    ) -> Cell:  # fmt: skip
        names = self.parameters.fusers_of(channel)
        said = channel.model_dump(mode="json") | {"codec": self._codec(channel.codec), "fusers": list(names)}
        asked = {
            "channel": said,
            "text": self.parameters.text.model_dump(mode="json") if channel.via == "text" else None,
            **self._kept(
                "answer_by", "max_new_tokens", "chat_template", "answer_prefix", "limit", "error_share", "dtype"
            ),
        }
        needs = self._needed_fusers(names, trained)
        if channel.allocation:
            needs["calibration"] = calibrated[names[0]].id
        sharers = [self.parameters.fusers[name].sharer for name in names] or [self._sharer(channel)]
        items = min(task.count("test"), self.parameters.limit or task.count("test"))
        return self._cell(
            EVALUATE, seed, asked, names, arm=arm, slice=dataset, needs=needs,
            inputs=self._models(*sharers) | {"task": task.content_id()},
            settings={
                "channel": channel.model_dump(mode="json"),
                "codec": self._codec(channel.codec),
                "sharer": sharers[0],
                "milestone": milestone(channel),
                "dataset": dataset,
                "task": self.parameters.tasks[list(self._tasks).index(dataset)],
            },
            estimate=self._forwards(items, sharers, written=self._written(channel)),
        )  # fmt: skip

    def _cell(
        self, stage: str, seed: int, parameters: dict[str, Any], fusers: Any, *, settings: dict[str, Any],
        inputs: dict[str, str], **more: Any,
    ) -> Cell:  # fmt: skip
        given = {name: self.parameters.fusers[name] for name in fusers}
        for name, fuser in given.items():
            if fuser.directory is not None:
                inputs[f"fuser:{name}"] = fuser_content_id(fuser.directory)
        return Cell(
            protocol=self.study.protocol,
            version=self.version,
            stage=stage,
            parameters=parameters,
            seed=seed,
            inputs=inputs,
            smoke=self.study.smoke,
            settings={
                "receiver": self.parameters.receiver,
                "sharers": self.parameters.sharers,
                "fusers": {name: fuser.model_dump(mode="json") for name, fuser in given.items()},
                "link": self.parameters.link.model_dump(mode="json"),
                "evaluation_batch_size": self.parameters.evaluation_batch_size,
                "chunk_size": self.parameters.chunk_size,
                "run_tag_prefix": self.parameters.run_tag_prefix or self.study.name,
                **settings,
            },
            **more,
        )

    def _needed_fusers(self, names: Any, trained: Mapping[str, Cell]) -> dict[str, str]:
        return {f"fuser:{name}": trained[name].id for name in names if name in trained}

    def _models(self, *sharers: str) -> dict[str, str]:
        """Content ids of the receiver and of the sharers that a cell loads."""
        refs = {f"sharer:{name}": self.parameters.sharers[name] for name in sharers}
        return {role: content_id(ref) for role, ref in {"receiver": self.parameters.receiver, **refs}.items()}

    def _sharer(self, channel: Channel) -> str:
        return channel.sharer or next(iter(self.parameters.sharers))

    def _written(self, channel: Channel) -> int:
        """Tokens that an item takes to write, at most: the sharer's text, and a generated answer."""
        answer = self.parameters.max_new_tokens if self.parameters.answer_by == "generation" else 0
        return answer + (self.parameters.text.max_new_tokens if channel.via == "text" else 0)

    def _codec(self, name: str) -> dict[str, Any]:
        return self.parameters.codec_table[name].model_dump(mode="json")

    def _kept(self, *names: str) -> dict[str, Any]:
        known = identifying(self.parameters, LEFT_OUT)
        return {name: known[name] for name in names}

    @cached_property
    def _training_settings(self) -> dict[str, Any]:
        return self.parameters.training_task or self.parameters.tasks[0]

    def _forwards(self, items: int, sharers: Iterable[str], factor: float = 2.0, written: int = 0) -> Estimate:
        """2N a token of all models, a pass for each token that a batch writes, and the weights' way to the device.

        Without a model's shape there is no telling.
        """
        device, task = find_device(self.study.resources.device), next(iter(self._tasks.values()))
        refs = [self.parameters.receiver, *(self.parameters.sharers[name] for name in set(sharers))]
        try:
            sizes = [parameter_count(ref) for ref in refs]
            width = sum(2 * (g := Geometry.of_reference(ref)).layers * g.width for ref in refs)
        except ModelError:
            return Estimate(disk_bytes=items * BYTES_PER_ITEM)
        number = 4 if self.parameters.dtype == "float32" else 2
        batches = items / self.parameters.evaluation_batch_size
        return Estimate(
            seconds=sum(sizes) * number / LOAD_BYTES_PER_S
            + items * (factor * task.tokens_per_item + 2 * written) * sum(sizes) / device.flops_per_s
            + batches * (2 + written) * device.step_overhead_s,
            disk_bytes=items * BYTES_PER_ITEM,
            memory_bytes=sum(sizes) * number
            + 3 * number * width * self.parameters.evaluation_batch_size * task.tokens_per_item,
        )

    def _training(self, fuser: FuserSettings) -> Estimate:
        """Forward through both models, and back through the receiver's last tokens and the fuser."""
        if fuser.training is None:
            return Estimate()
        items = fuser.training.steps * fuser.training.gradient_accumulation * fuser.training.batch_size
        return self._forwards(items, [fuser.sharer], factor=6.0)
