"""The cells of a communication study: per seed fusers, their calibration, one evaluation per arm and data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from nullarm.errors import DatasetError, ModelError, StudyError, nearest
from nullarm.models.facts import architecture
from nullarm.models.reference import content_id
from nullarm.models.tasks.base import AnsweredTask, Split
from nullarm.models.tasks.factory import make_task
from nullarm.protocols.kv_communication.estimates import TRAINING, Estimates
from nullarm.protocols.kv_communication.fuser.reference import fuser_content_id
from nullarm.protocols.kv_communication.parameters import LEFT_OUT, Channel, KvCommunicationParameters, milestone
from nullarm.protocols.kv_communication.selection.known_queries import QUERIES_KNOWN
from nullarm.protocols.kv_communication.tables import CALIBRATE, EVALUATE, TRAIN_FUSER
from nullarm.protocols.kv_communication.wire.codec import widths
from nullarm.sites.devices import find_device
from nullarm.study.identity import identifying
from nullarm.study.plan import Cell
from nullarm.study.spec import Study

METRICS = ("accuracy", "log_likelihood")
OUTSIDE_OF_TRAINING = ("checkpoint_every", "keep_checkpoints", "gradient_checkpointing")
"""Settings of a training run that do not change what comes out."""
ASKS_ITSELF = {"expected_attention": "sharer", "two_round": "receiver"}
"""Orders that look at a model's queries, and whose."""


def kv_communication_cells(study: Study, parameters: KvCommunicationParameters, version: int) -> list[Cell]:
    """All cells, in an order in which each follows what it needs.

    Raises:
        StudyError: An arm has no channel, or a channel no arm; the metric is not measured; no arm is to be run.
        DatasetError: A task is wrong, or has no split that is needed.
        ModelError: A model reference is wrong, or a model has no queries to choose tokens by.
    """
    _match_arms(study, parameters)
    metrics = METRICS[:1] if parameters.answer_by == "generation" else METRICS
    if study.analysis.metric not in metrics:
        hint = nearest(study.analysis.metric, metrics)
        raise StudyError(f"analysis.metric {study.analysis.metric!r} is not measured{hint}", valid=metrics)
    planner = _Planner(study, parameters, version)
    if not planner.channels:
        raise StudyError(
            "no arm belongs to these milestones",
            value=list(parameters.milestones),
            valid=sorted({milestone(c, parameters.codec_table) for c in parameters.all_channels().values()}),
        )
    planner.check_queries()
    return list(planner.cells())


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
    if len(study.factors) > 1:
        raise StudyError(
            "this protocol takes one factor, whose arms are channels", value=list(study.factors),
            next_command="put all arms under one factor",
        )  # fmt: skip
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

    @cached_property
    def channels(self) -> dict[str, Channel]:
        """The arms of the milestones that are to be run."""
        codecs, wanted = self.parameters.codec_table, self.parameters.milestones
        return {
            name: channel
            for name, channel in self.parameters.all_channels().items()
            if milestone(channel, codecs) in wanted
        }

    def check_queries(self) -> None:
        """Refuse to choose tokens by the queries of a model whose class does not show them."""
        for name, channel in self.channels.items():
            whose = ASKS_ITSELF.get(channel.order)
            refs = [self.parameters.receiver] if whose == "receiver" else self._refs(self._sharers(channel))
            for ref in refs if whose and channel.proportion < 1 else ():
                if (known := architecture(ref)) is not None and known not in QUERIES_KNOWN:
                    raise ModelError(
                        f"channels.{name}: order {channel.order} needs the queries of the {whose}",
                        value=known, valid=sorted(QUERIES_KNOWN),
                    )  # fmt: skip

    def cells(self) -> Iterator[Cell]:
        """Seed by seed."""
        for seed in self.study.seeds:
            trained: dict[str, Cell] = {}
            for name in self._fusers_used:
                if self.parameters.fusers[name].directory is None:
                    trained[name] = self._train(name, seed, trained)
            calibrated = {pair: self._calibrate(*pair, seed, trained) for pair in self._calibrations}
            yield from trained.values()
            yield from calibrated.values()
            for arm, channel in self.channels.items():
                for dataset, task in self._tasks.items():
                    yield self._evaluate(arm, channel, dataset, task, seed, trained, calibrated)

    @cached_property
    def _tasks(self) -> dict[str, AnsweredTask]:
        return datasets(self.parameters)

    @cached_property
    def _training_settings(self) -> dict[str, Any]:
        return self.parameters.training_task or self.parameters.tasks[0]

    @cached_property
    def _content_id(self) -> Callable[[str], str]:
        """`content_id`, which reads all files of a model: once for each model, not for each cell."""
        return cache(content_id)

    @cached_property
    def _fuser_content_id(self) -> Callable[[str], str]:
        """`fuser_content_id`, once for each fuser."""
        return cache(fuser_content_id)

    @cached_property
    def _test_sets(self) -> dict[str, tuple[str, int]]:
        """Content id and number of items of each data set, for which some have to be read."""
        return {name: (task.content_id(), task.count("test")) for name, task in self._tasks.items()}

    @cached_property
    def _training_set(self) -> Callable[[Split], tuple[AnsweredTask, str]]:
        """The training task, found to have that split, and its content id; looked at once for each split."""
        return cache(lambda split: ((task := self._training_task(split)), task.content_id()))

    def _training_task(self, split: Split) -> AnsweredTask:
        """The task that fusers are trained and codecs calibrated on, which has to have that split.

        Raises:
            DatasetError: It has not.
        """
        task = answered_task(self._training_settings)
        task.count("test")  # a fault of the data as a whole is not one of this split
        try:
            task.count(split)
        except DatasetError as error:
            what = "fusers are trained" if split == "train" else "codecs are calibrated"
            raise DatasetError(
                f"{what} on the {split} split of `training_task`: {error.problem}",
                value=self._training_settings, next_command="set parameters.training_task",
            ) from error  # fmt: skip
        return task

    @cached_property
    def _fusers_used(self) -> list[str]:
        """By the arms, or started from; in the order of the study, in which each follows what it starts from."""
        used = {name for channel in self.channels.values() for name in self.parameters.fusers_of(channel)}
        for name in reversed(self.parameters.fusers):
            if name in used and (first := self.parameters.fusers[name].start_from):
                used.add(first)
        return [name for name in self.parameters.fusers if name in used]

    @cached_property
    def _calibrations(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Which (fuser, codec) are measured, for milestone 1 or an allocation, and the widths that arms allocate."""
        found: dict[tuple[str, str], set[int]] = {}
        for channel in self.channels.values():
            for name in self.parameters.fusers_of(channel):
                if channel.allocation or 1 in self.parameters.milestones:
                    bits = found.setdefault((name, channel.codec), set())
                    bits |= set(self._allocated(channel))
        return {pair: tuple(sorted(bits)) for pair, bits in found.items()}

    def _allocated(self, channel: Channel) -> tuple[int, ...]:
        """Widths that an arm chooses from."""
        if channel.allocation is None:
            return ()
        return channel.allocation.bits or widths(self.parameters.codec_table[channel.codec])

    def _train(self, name: str, seed: int, trained: Mapping[str, Cell]) -> Cell:
        fuser = self.parameters.fusers[name]
        first = [fuser.start_from] if fuser.start_from else []
        training = identifying(fuser, {})["training"]
        outside = {key: training.pop(key) for key in OUTSIDE_OF_TRAINING}
        asked = {
            "training": training,
            "train_items": fuser.train_items,
            "max_tokens": fuser.max_tokens,
            "alignment": fuser.alignment,
            "shape": None if first else fuser.shape.model_dump(mode="json"),
            "start_from": fuser.start_from,
            "codecs": [self._codec(codec) for codec in fuser.codecs],
            **self._kept("chat_template", "answer_prefix", "dtype"),
        }
        task, task_id = self._training_set("train")
        items = training["steps"] * training["gradient_accumulation"] * training["batch_size"]
        return self._cell(
            TRAIN_FUSER, seed, asked, [name, *first], slice=name,
            inputs=self._models(fuser.sharer) | {"task": task_id},
            needs=self._needed_fusers(first, trained),
            settings={"training": outside, "task": self._training_settings},
            estimate=self._estimates.of(self._refs([fuser.sharer], receiver=True), task, items, flops=TRAINING),
        )  # fmt: skip

    def _calibrate(self, name: str, codec: str, seed: int, trained: Mapping[str, Cell]) -> Cell:
        bits = self._calibrations[name, codec]
        asked = {
            "fuser": name,
            "codec_name": codec,
            "codec": self._codec(codec),
            "widths": list(bits),
            **self._kept("calibration_items", "chat_template", "answer_prefix", "dtype"),
        }
        sharer, (task, task_id) = self.parameters.fusers[name].sharer, self._training_set("dev")
        refs = self._refs([sharer], receiver=True)
        streams = 2 * 28  # a usual depth: each is quantised by itself, at every width
        return self._cell(
            CALIBRATE, seed, asked, [name], slice=f"{name}-{codec}",
            inputs=self._models(sharer) | {"task": task_id},
            needs=self._needed_fusers([name], trained),
            settings={"task": self._training_settings},
            estimate=self._estimates.of(refs, task, self.parameters.calibration_items * (1 + streams * len(bits))),
        )  # fmt: skip

    def _evaluate(
        self, arm: str, channel: Channel, dataset: str, task: AnsweredTask, seed: int, trained: Mapping[str, Cell],
        calibrated: Mapping[tuple[str, str], Cell],
    ) -> Cell:  # fmt: skip
        names = self.parameters.fusers_of(channel)
        said = channel.model_dump(mode="json") | {"codec": self._codec(channel.codec), "fusers": list(names)}
        if channel.allocation:
            said["allocation"]["bits"] = list(self._allocated(channel))
        asked = {
            "channel": said,
            "text": self.parameters.text.model_dump(mode="json") if channel.via == "text" else None,
            **self._kept("answer_by", "chat_template", "answer_prefix", "limit", "error_share", "dtype"),
            "max_new_tokens": self.parameters.max_new_tokens if self.parameters.answer_by == "generation" else 0,
        }
        needs = self._needed_fusers(names, trained)
        if channel.allocation:
            needs["calibration"] = calibrated[names[0], channel.codec].id
        sharers, answers = self._sharers(channel), channel.via != "sharer"
        task_id, there = self._test_sets[dataset]
        items = min(there, self.parameters.limit or there)
        return self._cell(
            EVALUATE, seed, asked, names, arm=arm, slice=dataset, needs=needs,
            inputs=self._models(*sharers, receiver=answers) | {"task": task_id},
            settings={
                "channel": channel.model_dump(mode="json"),
                "codec": self._codec(channel.codec),
                "sharer": next(iter(sharers), None),
                "milestone": milestone(channel, self.parameters.codec_table),
                "dataset": dataset,
                "task": self.parameters.tasks[list(self._tasks).index(dataset)],
            },
            estimate=self._estimates.of(
                self._refs(sharers, receiver=answers), task, items, written=self._written(channel)
            ),
        )  # fmt: skip

    def _cell(
        self, stage: str, seed: int, parameters: dict[str, Any], fusers: Iterable[str], *, settings: dict[str, Any],
        inputs: dict[str, str], **more: Any,
    ) -> Cell:  # fmt: skip
        given = {name: self.parameters.fusers[name] for name in fusers}
        for name, fuser in given.items():
            if fuser.directory is not None:
                inputs[f"fuser:{name}"] = self._fuser_content_id(fuser.directory)
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

    def _needed_fusers(self, names: Iterable[str], trained: Mapping[str, Cell]) -> dict[str, str]:
        return {f"fuser:{name}": trained[name].id for name in names if name in trained}

    def _sharers(self, channel: Channel) -> list[str]:
        """Names of the sharers that an arm loads."""
        if channel.via == "receiver":
            return []
        if channel.via == "fuser":
            return [self.parameters.fusers[name].sharer for name in self.parameters.fusers_of(channel)]
        return [channel.sharer or next(iter(self.parameters.sharers))]

    def _models(self, *sharers: str, receiver: bool = True) -> dict[str, str]:
        """Content ids of the models that a cell loads."""
        refs = {"receiver": self.parameters.receiver} if receiver else {}
        refs |= {f"sharer:{name}": self.parameters.sharers[name] for name in sharers}
        return {role: self._content_id(ref) for role, ref in refs.items()}

    def _refs(self, sharers: Iterable[str], *, receiver: bool = False) -> list[str]:
        return [self.parameters.receiver] * receiver + [
            self.parameters.sharers[name] for name in dict.fromkeys(sharers)
        ]

    def _codec(self, name: str) -> dict[str, Any]:
        return self.parameters.codec_table[name].model_dump(mode="json")

    def _kept(self, *names: str) -> dict[str, Any]:
        known = identifying(self.parameters, LEFT_OUT)
        return {name: known[name] for name in names}

    def _written(self, channel: Channel) -> int:
        """Tokens that an item takes to write, at most: the sharer's text, and a generated answer."""
        answer = self.parameters.max_new_tokens if self.parameters.answer_by == "generation" else 0
        return answer + (self.parameters.text.max_new_tokens if channel.via == "text" else 0)

    @cached_property
    def _estimates(self) -> Estimates:
        device = find_device(self.study.resources.device)
        return Estimates(device, self.parameters.dtype, self.parameters.evaluation_batch_size)
