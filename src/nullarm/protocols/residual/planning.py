"""The cells of a residual study: per arm, replicate and seed one capture, and the interventions that were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nullarm.errors import ModelError, StudyError, nearest
from nullarm.models.anatomy import SUPPORTED, unknown_architecture
from nullarm.models.facts import architecture, parameter_count, shape_facts
from nullarm.models.reference import content_id
from nullarm.protocols.residual.memory import BYTES, pair_memory
from nullarm.protocols.residual.parameters import LEFT_OUT, Pair, ResidualParameters
from nullarm.protocols.residual.reading.prompt_file import read_prompts
from nullarm.protocols.residual.reading.variants import bind
from nullarm.protocols.residual.tables import ITEM_METRICS, SHARES
from nullarm.sites.devices import find_device
from nullarm.study.identity import content_hash, identifying
from nullarm.study.plan import Cell, Estimate
from nullarm.study.spec import Study

CHARACTERS_PER_TOKEN = 3.5
"""Of English text and a vocabulary of a language model."""
LOAD_BYTES_PER_S = 1e9
"""Weights from disk to device."""
BYTES_PER_ROW = 24
"""Of a row of the scalar table, compressed; a token of a top-k list takes eight."""

CAPTURE = "capture"
TUNE_LENS = "tune_lens"


def residual_cells(study: Study, parameters: ResidualParameters, version: int) -> list[Cell]:
    """All cells, in an order in which each follows what it needs.

    Raises:
        StudyError: An arm has no pair, or a pair no arm.
        DatasetError: The prompt file is missing, empty or malformed.
        ModelError: A model reference is wrong.
    """
    _match_arms(study, parameters)
    _check_what_is_asked(study, parameters)
    planner = _Planner(study, parameters, version)
    cells: dict[str, Cell] = {}
    for name, arm in study.arms.items():
        for seed in study.seeds:
            for replicate in range(1, arm.replicates + 1):
                made = planner.cells(name, seed, replicate if arm.replicates > 1 else None)
                cells |= {cell.id: cell for cell in made}  # arms that read one model share its translators
    return list(cells.values())


def _match_arms(study: Study, parameters: ResidualParameters) -> None:
    arms, pairs = set(study.arms), set(parameters.pairs)
    if odd := arms ^ pairs:
        name = min(odd)
        raise StudyError(
            f"{study.name}: {name!r} is " + ("an arm without a pair" if name in arms else "a pair without an arm"),
            valid=sorted(arms & pairs) or "none agree",
            next_command="give `factors` and `parameters.pairs` the same names",
        )
    for name, arm in study.arms.items():
        if arm.replicates > 1 and parameters.pairs[name].sft_weights == "trained":
            raise StudyError(
                f"arm {name!r}: nothing is drawn at random in a trained pair, so replicates would be copies",
                value=arm.replicates,
                valid="replicates: 1, or sft_weights: matched_noise",
            )


def _check_what_is_asked(study: Study, parameters: ResidualParameters) -> None:
    """What would only show after models are loaded, or after everything is captured."""
    metrics = [name for name in ITEM_METRICS if parameters.multi_pass.enabled or name not in SHARES]
    if study.analysis.metric not in metrics:
        raise StudyError(
            f"analysis.metric {study.analysis.metric!r} is not measured{nearest(study.analysis.metric, metrics)}",
            valid=metrics,
        )
    bind(parameters.prompt_variants, parameters.prompt_variant_options, study.seeds[0])
    for pair in parameters.pairs.values():
        for ref in (pair.base, pair.sft):
            if (name := architecture(ref)) is not None and name not in SUPPORTED:
                raise unknown_architecture(name)


@dataclass(frozen=True)
class _Planner:
    study: Study
    parameters: ResidualParameters
    version: int

    def cells(self, arm: str, seed: int, replicate: int | None) -> list[Cell]:
        pair = self.parameters.pairs[arm]
        lenses = self._lenses(pair, seed) if self.parameters.lens == "tuned" else {}
        needs = {side: cell.id for side, cell in lenses.items()}
        capture = self._cell(
            CAPTURE, arm, seed, replicate, self._asked(pair), {"lens_" + side: need for side, need in needs.items()},
            self._capturing(pair),
        )  # fmt: skip
        return [*lenses.values(), capture, *self._interventions(pair, arm, seed, replicate, capture)]

    def _asked(self, pair: Pair) -> dict[str, Any]:
        kept = self._kept(
            "chat_template", "add_bos", "normalize_length", "prompt_variants", "prompt_variant_options", "tracked",
            "top_k", "lens", "embedding_variants", "multi_pass", "direct_change", "whole_layer", "null_epsilon",
            "keep_residuals", "model_kwargs", "tokenizer_kwargs",
        )  # fmt: skip
        return {**kept, **self._weights(pair)}

    def _weights(self, pair: Pair) -> dict[str, Any]:
        return {"dtype": self.parameters.dtype_of(pair), "sft_weights": pair.sft_weights}

    def _lenses(self, pair: Pair, seed: int) -> dict[str, Cell]:
        """The translators of both models; a noisy model is read through the base's."""
        kept = self._kept("tuned_lens", "chat_template", "add_bos", "model_kwargs", "tokenizer_kwargs")
        refs = {"base": pair.base, "sft": pair.sft if pair.sft_weights == "trained" else pair.base}
        return {
            side: Cell(
                protocol=self.study.protocol,
                version=self.version,
                stage=TUNE_LENS,
                parameters={**kept, "dtype": self.parameters.dtype_of(pair)},
                seed=seed,
                slice=None,
                inputs={"model": content_id(ref, adapter=True), "prompts": self._prompts_id, **self._tokenizer(pair)},
                smoke=self.study.smoke,
                settings={**self._settings(pair), "model": ref},
                estimate=Estimate(2 * self._capturing(pair).seconds, 50_000),
            )
            for side, ref in refs.items()
        }

    def _interventions(self, pair: Pair, arm: str, seed: int, replicate: int | None, capture: Cell) -> list[Cell]:
        causal = self.parameters.causal
        if causal is None:
            return []
        shared = self._kept("chat_template", "add_bos", "model_kwargs", "tokenizer_kwargs") | self._weights(pair)
        asked = causal.model_dump(mode="json", exclude={"interventions"})
        uses = {"patching": (), "layer_swap": ("window",), "steering": ("strengths",)}
        own = {name for used in uses.values() for name in used}
        return [
            self._cell(
                stage, arm, seed, replicate,
                {**shared, **{k: v for k, v in asked.items() if k not in own or k in uses[stage]}},
                {"capture": capture.id} if stage == "steering" else {},
                Estimate(self._capturing(pair).seconds, 100_000, self._capturing(pair).memory_bytes),
            )
            for stage in causal.interventions
        ]  # fmt: skip

    def _cell(
        self, stage: str, arm: str, seed: int, replicate: int | None, parameters: dict[str, Any],
        needs: Mapping[str, str], estimate: Estimate,
    ) -> Cell:  # fmt: skip
        pair = self.parameters.pairs[arm]
        inputs = {"base": content_id(pair.base), "sft": content_id(pair.sft, adapter=True), "prompts": self._prompts_id}
        return Cell(
            protocol=self.study.protocol,
            version=self.version,
            stage=stage,
            parameters=parameters,
            seed=seed,
            arm=arm,
            replicate=replicate,
            inputs=inputs | self._tokenizer(pair),
            needs=needs,
            smoke=self.study.smoke,
            settings=self._settings(pair),
            estimate=estimate,
        )

    def _tokenizer(self, pair: Pair) -> dict[str, str]:
        return {"tokenizer": content_id(pair.tokenizer)} if pair.tokenizer else {}

    def _settings(self, pair: Pair) -> dict[str, Any]:
        return {
            "base": pair.base,
            "sft": pair.sft,
            "tokenizer": pair.tokenizer,
            "prompts": list(self._prompts),
            "batch_tokens": self.parameters.batch_tokens,
            "placement": self.parameters.placement,
            "together_bytes": self._together(pair),
            "json_export": self.parameters.json_export,
            "device_map": self.parameters.model_kwargs["device_map"],
        }

    def _together(self, pair: Pair) -> int:
        """Device memory with both models on it; 0 where a shape is not known in advance."""
        try:
            return pair_memory(pair, self.parameters).together
        except ModelError:
            return 0

    def _kept(self, *names: str) -> dict[str, Any]:
        known = identifying(self.parameters, LEFT_OUT)
        return {name: known[name] for name in names}

    @cached_property
    def _prompts(self) -> tuple[str, ...]:
        file = self.parameters.prompt_file
        return self.parameters.prompts if file is None else read_prompts(file)

    @cached_property
    def _prompts_id(self) -> str:
        return f"prompts:{content_hash(list(self._prompts))}"

    def _capturing(self, pair: Pair) -> Estimate:
        """2N a token and forward, 2·L·V·d a token and run; what is not on this machine is left out."""
        passes = self.parameters.passes()
        tokens = sum(map(len, self._prompts)) / CHARACTERS_PER_TOKEN * len(self.parameters.prompt_variants)
        try:
            size, facts = parameter_count(pair.base), shape_facts(pair.base)
            need = pair_memory(pair, self.parameters)
            memory = need.together if self.parameters.placement == "together" else need.sequential
        except ModelError:
            return Estimate()
        forwards = len(passes.forwards) + self.parameters.direct_change
        flops = 2 * size * forwards + 2 * facts.layers * facts.vocabulary_size * facts.hidden_size * len(passes.runs)
        records = len(passes.runs) + len(passes.comparisons)
        rows = tokens * (facts.layers + 1) * records
        return Estimate(
            seconds=2 * size * BYTES[self.parameters.dtype_of(pair)] / LOAD_BYTES_PER_S
            + tokens * flops / find_device(self.study.resources.device).flops_per_s,
            disk_bytes=int(rows * (BYTES_PER_ROW + 8 * self.parameters.top_k)),
            memory_bytes=memory,
        )
