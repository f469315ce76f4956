"""The cells of a compression study: spectra, per arm its factors and its perplexity, per timing contrast a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nullarm.errors import StudyError, nearest
from nullarm.models.facts import context_length
from nullarm.models.reference import content_id
from nullarm.models.texts.factory import make_text
from nullarm.protocols.low_rank.estimates import Estimates
from nullarm.protocols.low_rank.parameters import LEFT_OUT, LowRankParameters, Speculation, Sweep
from nullarm.protocols.low_rank.sizes import Sizes
from nullarm.protocols.low_rank.slots import SLOTS
from nullarm.protocols.low_rank.tables import COMPRESS, EVALUATE, MEASURE, SPECTRA, SPECULATE, SWEEP
from nullarm.sites.devices import find_device
from nullarm.study.identity import identifying
from nullarm.study.plan import Cell
from nullarm.study.spec import Contrast, Study

METRIC = "log_likelihood"
BY_VARIANCE = ("mcr", "random")
"""Allocations that read the variance of the layers, which stage `spectra` measures."""


def low_rank_cells(study: Study, parameters: LowRankParameters, version: int) -> list[Cell]:
    """All cells, in an order in which each follows what it needs.

    Raises:
        StudyError: An arm has no compression, or a compression no arm; the metric is not measured.
        DatasetError: The text is missing or malformed.
        ModelError: The model's reference is wrong, or its shape is not known.
    """
    _match_arms(study, parameters)
    if study.analysis.metric != METRIC:
        raise StudyError(f"analysis.metric {study.analysis.metric!r} is not measured", valid=[METRIC])
    if timed(study) and parameters.bench.procedure == "blocked" and len(study.seeds) > 1:
        raise StudyError(
            "procedure blocked is one session, whose runs are judged together", value=list(study.seeds),
            valid="one seed", next_command="set seeds: [0], or bench.procedure: abba",
        )  # fmt: skip
    for contrast in timed(study):
        for arm in (contrast.treatment, contrast.control):
            if study.arms[arm].replicates > 1:
                raise StudyError(
                    f"contrast {contrast.name!r} times arm {arm!r}, of which there are several",
                    value=study.arms[arm].replicates, next_command="time an arm without `replicates`",
                )  # fmt: skip
    if parameters.rerun is not None and parameters.rerun not in (names := [c.name for c in timed(study)]):
        raise StudyError(
            f"parameters.rerun {parameters.rerun!r} is no timed contrast{nearest(parameters.rerun, names)}", valid=names
        )
    planner = _Planner(study, parameters, version)
    _refuse_what_cannot_run(parameters, planner.sizes)
    return list(planner.cells())


def timed(study: Study) -> list[Contrast]:
    """The contrasts that time two arms against each other."""
    return [contrast for contrast in study.analysis.contrasts if contrast.test == "paired_blocks"]


def _refuse_what_cannot_run(parameters: LowRankParameters, sizes: Sizes) -> None:
    """What shapes and local texts tell beforehand."""
    most = context_length(parameters.model)
    if most is not None and parameters.window > most:
        raise StudyError(
            f"parameters.window is longer than the context of {parameters.model}", value=parameters.window,
            valid=f"up to {most}",
        )  # fmt: skip
    speculate = any(arm.speculation for arm in parameters.compression.values())
    documents = _documents(parameters) if speculate else None
    for name, arm in parameters.compression.items():
        rank = arm.budget.rank if arm.budget else None
        if rank is not None and rank > (largest := max(group.max_rank for group in sizes.groups(arm))):
            raise StudyError(
                f"compression.{name}.budget.rank is above the rank of the matrices", value=rank,
                valid=f"up to {largest}",
            )  # fmt: skip
        wanted = arm.speculation.prompts if arm.speculation else 0
        if documents is not None and wanted > documents:
            raise StudyError(
                f"compression.{name}.speculation.prompts are more than the test split has documents", value=wanted,
                valid=f"up to {documents}",
            )  # fmt: skip


def _documents(parameters: LowRankParameters) -> int | None:
    """Documents of the test split; None of a text that would have to be downloaded to know."""
    text = make_text(parameters.text)
    return None if text.downloads else len(text.documents("test"))


def _match_arms(study: Study, parameters: LowRankParameters) -> None:
    if len(study.factors) > 1:
        raise StudyError(
            "this protocol takes one factor, whose arms are compressions", value=list(study.factors),
            next_command="put all arms under one factor",
        )  # fmt: skip
    if odd := set(study.arms) ^ set(parameters.compression):
        name = min(odd)
        what = "an arm without a compression" if name in study.arms else "a compression without an arm"
        raise StudyError(
            f"{study.name}: {name!r} is {what}", valid=sorted(set(study.arms) & set(parameters.compression)),
            next_command="give `factors` and `parameters.compression` the same names",
        )  # fmt: skip
    for name, arm in parameters.compression.items():
        drafter = arm.speculation.drafter if arm.speculation else None
        if drafter and study.arms[drafter].replicates > 1:
            raise StudyError(f"compression.{name}: the drafter {drafter!r} is drawn several times per seed")


@dataclass(frozen=True)
class _Planner:
    study: Study
    parameters: LowRankParameters
    version: int

    def cells(self) -> Iterator[Cell]:
        """Spectra and sweep once, the rest seed by seed."""
        yield self._spectra
        if sweep := self.parameters.sweep:
            for method in sweep.methods:
                yield self._sweep(sweep, method.model_dump(mode="json"))
        for seed in self.study.seeds:
            yield from self._of_seed(seed)

    def _of_seed(self, seed: int) -> Iterator[Cell]:
        made: dict[str, Cell] = {}
        for name, arm in self.study.arms.items():
            for replicate in range(1, arm.replicates + 1):
                drawn = replicate if arm.replicates > 1 else None
                if self.parameters.compression[name].treated:
                    made[name] = self._compress(name, seed, drawn)
                    yield made[name]
                yield self._evaluate(name, seed, drawn, made.get(name))
        for name, settings in self.parameters.compression.items():
            if settings.speculation:
                yield self._speculate(name, settings.speculation, seed, made)
        for contrast in timed(self.study):
            yield self._measure(contrast, seed, made)

    @cached_property
    def _spectra(self) -> Cell:
        return self._cell(
            SPECTRA, self.study.seeds[0], {**self._calibration, "slots": list(SLOTS)},
            inputs=self._inputs, settings={"layers_at_once": self.parameters.layers_at_once},
            estimate=self._estimates.spectra(),
        )  # fmt: skip

    def _sweep(self, sweep: Sweep, method: dict[str, Any]) -> Cell:
        asked = {
            **self._calibration, **self._evaluation, "method": method, "slots": list(sweep.slots),
            "keep": list(sweep.keep), "windows": sweep.windows,
        }  # fmt: skip
        said = [method["kind"], *(f"{k}_{v}" for k, v in method.items() if k != "kind")]
        return self._cell(
            SWEEP, self.study.seeds[0], asked, slice=".".join(said), inputs=self._inputs,
            settings={"layers_at_once": self.parameters.layers_at_once},
            estimate=self._estimates.sweep(self.sizes, sweep),
        )  # fmt: skip

    def _compress(self, name: str, seed: int, replicate: int | None) -> Cell:
        arm = self.parameters.compression[name]
        asked = {
            **self._calibration,
            "compression": arm.model_dump(mode="json", exclude={"budget", "speculation"}),
            "numbers": self.sizes.numbers(name),
        }
        needs = {"spectra": self._spectra.id} if arm.allocation.kind in BY_VARIANCE else {}
        return self._cell(
            COMPRESS, seed, asked, arm=name, replicate=replicate, inputs=self._inputs, needs=needs,
            settings={"layers_at_once": self.parameters.layers_at_once},
            estimate=self._estimates.compress(self.sizes, name),
        )  # fmt: skip

    def _evaluate(self, name: str, seed: int, replicate: int | None, factors: Cell | None) -> Cell:
        return self._cell(
            EVALUATE, seed, self._evaluation, arm=name, replicate=replicate, inputs=self._inputs,
            needs=_needed(factors=factors), estimate=self._estimates.evaluate(),
        )  # fmt: skip

    def _speculate(self, name: str, speculation: Speculation, seed: int, made: Mapping[str, Cell]) -> Cell:
        asked = {"speculation": speculation.model_dump(mode="json"), "dtype": self.parameters.dtype}
        return self._cell(
            SPECULATE, seed, asked, arm=name, inputs=self._inputs, exclusive=True,
            needs=_needed(drafter=made[speculation.drafter]), estimate=self._estimates.speculate(speculation),
        )  # fmt: skip

    def _measure(self, contrast: Contrast, seed: int, made: Mapping[str, Cell]) -> Cell:
        arms = {"treatment": contrast.treatment, "control": contrast.control}
        settings = {role: self.parameters.compression[name] for role, name in arms.items()}
        speculations = {role: arm.speculation for role, arm in settings.items() if arm.speculation}
        asked = {
            "bench": self.parameters.bench.model_dump(mode="json"),
            "dtype": self.parameters.dtype,
            "speculation": {role: s.model_dump(mode="json") for role, s in speculations.items()},
        }
        drafters = {role: made[s.drafter] for role, s in speculations.items()}
        return self._cell(
            MEASURE, seed, asked, slice=contrast.name, inputs=self._inputs, exclusive=True,
            needs=_needed(**{role: drafters.get(role, made.get(name)) for role, name in arms.items()}),
            settings={"arms": arms}, estimate=self._estimates.measure(self.parameters.bench),
        )  # fmt: skip

    def _cell(self, stage: str, seed: int, parameters: dict[str, Any], **more: Any) -> Cell:
        settings = {
            "model": self.parameters.model,
            "text": self.parameters.text,
            "batch_size": self.parameters.batch_size,
            **more.pop("settings", {}),
        }
        return Cell(
            protocol=self.study.protocol, version=self.version, stage=stage, parameters=parameters, seed=seed,
            smoke=self.study.smoke, settings=settings, **more,
        )  # fmt: skip

    @cached_property
    def _inputs(self) -> dict[str, str]:
        return {
            "model": content_id(self.parameters.model),
            "text": make_text(self.parameters.text).content_id(),
        }

    @property
    def _calibration(self) -> dict[str, Any]:
        return self._kept("calibration_tokens", "window", "dtype")

    @property
    def _evaluation(self) -> dict[str, Any]:
        return self._kept("evaluation_tokens", "joined", "window", "stride", "dtype")

    def _kept(self, *names: str) -> dict[str, Any]:
        known = identifying(self.parameters, LEFT_OUT)
        return {name: known[name] for name in names}

    @cached_property
    def sizes(self) -> Sizes:
        """How much each arm keeps."""
        return Sizes(self.parameters)

    @cached_property
    def _estimates(self) -> Estimates:
        return Estimates(self.parameters, find_device(self.study.resources.device))


def _needed(**cells: Cell | None) -> dict[str, str]:
    return {role: cell.id for role, cell in cells.items() if cell is not None}
