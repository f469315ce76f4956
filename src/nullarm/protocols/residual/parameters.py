"""What a residual study may set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from nullarm.protocols.residual.runs import CANONICAL, Comparison, Passes, Run, Side, multi_pass, single_pass
from nullarm.study.spec import Name, Strict

LEFT_OUT = {
    "pairs": "an arm's models are named by the content of their files, among the cell's inputs",
    "prompts": "named by their content, among the cell's inputs",
    "prompt_file": "read when the study is planned; its prompts are named by their content",
    "batch_tokens": "moves results by rounding only",
    "placement": "where weights lie while they work",
    "json_export": "another form of the same tables",
    "model_kwargs.device_map": "where weights lie while they work",
}
"""Parameters outside of a cell's identity, and why."""

Dtype = Literal["float32", "bfloat16", "float16"]


class Pair(Strict):
    """A base model and what became of it; the pair stands under the name of its arm."""

    base: str
    """Reference of the base model."""
    sft: str
    """Reference of the fine-tuned model: a model, or a PEFT adapter on the base."""
    tokenizer: str | None = None
    """Tokeniser of both sides; each model's own when left out."""
    dtype: Dtype | None = None
    """Of this pair's weights, instead of the study's."""
    sft_weights: Literal["trained", "matched_noise"] = "trained"
    """`matched_noise` replaces every tensor of the fine-tuned model by the base's plus Gaussian noise as large
    (Frobenius norm) as the change that training made: a control for where any change of this size would show."""
    notes: str = ""
    """For people."""

    @model_validator(mode="after")
    def _noise_has_a_size(self) -> Pair:
        if self.sft_weights == "matched_noise" and self.base == self.sft:
            raise ValueError("matched_noise needs a fine-tuned model that differs from the base")
        return self


class Tracked(Strict):
    """Tokens whose logits are followed through the layers. An unknown one is an error, never dropped."""

    ids: tuple[int, ...] = ()
    """By id."""
    strings: tuple[str, ...] = ()
    """By the vocabulary's own string, such as `ĠYes`."""
    texts: tuple[str, ...] = ()
    """By text: the first token of it, with a warning when it splits."""
    named: dict[str, str] = Field(default_factory=dict)
    """Name to vocabulary string."""


class Source(Strict):
    """Where one side of a swap takes its embedding and unembedding from."""

    embedding_source: Literal["self", "base", "sft"] = "self"
    """Whose token embeddings."""
    unembedding_source: Literal["self", "base", "sft"] = "self"
    """Whose vocabulary projection."""

    def run(self, name: str, body: Side) -> Run:
        """The run of `body` with these sources."""
        embedding: Side = body if self.embedding_source == "self" else self.embedding_source
        unembedding: Side = body if self.unembedding_source == "self" else self.unembedding_source
        return Run(name, body, embedding, unembedding)


class Swap(Strict):
    """A named comparison of the two models with embeddings or unembeddings exchanged."""

    name: Name
    """Name of the comparison."""
    base: Source = Source()
    """Of the base side."""
    sft: Source = Source()
    """Of the fine-tuned side."""


class PassRun(Strict):
    """One run of a multi-pass capture."""

    name: Name
    """Name of the run."""
    model: Side
    """Whose body."""
    embedding_source: Literal["self", "base", "sft"] = "self"
    """Whose token embeddings."""
    unembedding_source: Literal["self", "base", "sft"] = "self"
    """Whose vocabulary projection."""

    def run(self) -> Run:
        """As a run."""
        source = Source(embedding_source=self.embedding_source, unembedding_source=self.unembedding_source)
        return source.run(self.name, self.model)


class MultiPass(Strict):
    """The factorial: embedding × body."""

    enabled: bool = False
    """Whether to run it."""
    runs: tuple[PassRun, ...] = ()
    """The runs; BB, BS, SB, SS when left out."""
    pairwise_differences: tuple[tuple[str, str], ...] = ()
    """Pairs of runs, left and right; all of them when left out."""

    @model_validator(mode="after")
    def _pairs_name_runs(self) -> MultiPass:
        names = [run.name for run in self.runs] or [run.name for run in CANONICAL]
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError("multi_pass.runs needs two or more runs with names of their own")
        for pair in self.pairwise_differences:
            if unknown := [name for name in pair if name not in names]:
                raise ValueError(f"pairwise_differences: no run {unknown[0]!r}; runs: {names}")
            if pair[0] == pair[1]:
                raise ValueError(f"pairwise_differences: {pair[0]!r} is compared with itself")
        return self

    def passes(self) -> Passes:
        """Runs and comparisons."""
        return multi_pass(tuple(run.run() for run in self.runs) or CANONICAL, self.pairwise_differences)


class WholeLayer(Strict):
    """Metrics of a whole layer: CKA, effective rank, mean-difference direction."""

    tokens: int = Field(default=1024, ge=8)
    """Most positions that enter, drawn over all prompts; the memory and disk this takes is bounded by it."""
    skip_positions: int = Field(default=1, ge=0)
    """Leading positions of every prompt that never enter: the first one often carries an attention sink."""
    resamples: int = Field(default=200, ge=50, le=10_000)
    """Bootstrap resamples of the prompts, for these metrics and for the trajectories."""


class TunedLens(Strict):
    """Training of the affine translators, one per layer and model (Belrose et al. 2023, 2303.08112)."""

    steps: int = Field(default=250, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""


class Causal(Strict):
    """Interventions that test what the maps suggest."""

    target: str
    """Text of the token whose logit is followed."""
    foil: str
    """Text of the token it is compared with: the outcome is logit(target) − logit(foil) at the last position."""
    interventions: tuple[Literal["patching", "layer_swap", "steering"], ...] = ("patching", "layer_swap", "steering")
    """Which ones."""
    prompts: int = Field(default=16, ge=1)
    """Prompts that enter, from the front."""
    window: int = Field(default=1, ge=1)
    """Consecutive blocks exchanged at a time by `layer_swap`."""
    strengths: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0)
    """Multiples of the mean difference that `steering` adds to the base model."""

    @model_validator(mode="after")
    def _tokens_differ(self) -> Causal:
        if self.target == self.foil:
            raise ValueError("causal.target and causal.foil are the same")
        return self


class ResidualParameters(Strict):
    """Parameters of protocol `residual`."""

    pairs: dict[Name, Pair] = Field(min_length=1)
    """The pair of models of every arm, by the arm's name."""
    prompts: tuple[str, ...] = ()
    """Prompts, inline."""
    prompt_file: str | None = None
    """Prompts from a file: one a line, blocks between lines of `---`, or JSONL with `prompt` or `text`."""
    chat_template: bool = False
    """Put every prompt into the tokeniser's chat template, as a user's message with the marker of the answer."""
    add_bos: bool = False
    """Begin every prompt with BOS even where the tokeniser by itself would not; one that does keeps doing so."""
    normalize_length: bool = False
    """Trim all prompts to the shortest one's number of tokens, by token ids, before variants are made."""
    prompt_variants: tuple[str, ...] = ("identity",)
    """Names of registered variants."""
    prompt_variant_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options by variant."""
    tracked: Tracked = Tracked()
    """Tokens whose logits are followed."""
    top_k: int = Field(default=25, ge=0, le=1000)
    """Tokens kept of the largest logits and of the largest shifts up and down."""
    dtype: Dtype = "float32"
    """Of the weights; metrics are computed in fp32 whatever it is."""
    lens: Literal["raw", "norm", "tuned"] = "norm"
    """How residuals are read: as they are, through the model's own final norm, or through trained translators."""
    tuned_lens: TunedLens = TunedLens()
    """How the translators of lens `tuned` are trained."""
    embedding_variants: tuple[Swap, ...] = ()
    """Further comparisons with embeddings or unembeddings exchanged."""
    multi_pass: MultiPass = MultiPass()
    """The factorial of embedding and body, instead of the plain comparison."""
    direct_change: bool = True
    """Also let the right run's blocks work on the left run's residuals: what each block changes by itself, with nothing
    inherited from earlier ones. One more forward per compared pair of bodies."""
    whole_layer: WholeLayer = WholeLayer()
    """Metrics of whole layers."""
    causal: Causal | None = None
    """Interventions; none when left out."""
    null_epsilon: float = Field(default=1e-6, ge=0)
    """Largest divergence (nats, and relative difference) that a model may show from itself: each cell runs the base
    model twice on its first batch, and is invalid beyond this."""
    keep_residuals: bool = False
    """Also keep every residual, as safetensors."""
    json_export: bool = True
    """Write the JSON files of the source's schema."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of a forward pass, padding included."""
    placement: Literal["auto", "together", "sequential"] = "auto"
    """Both models in memory, one after the other, or as it fits."""
    model_kwargs: dict[str, Any] = Field(default_factory=lambda: {"device_map": None})
    """Further arguments of `from_pretrained`."""
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the tokeniser's `from_pretrained`."""

    @model_validator(mode="before")
    @classmethod
    def _device_map_is_named(cls, data: Any) -> Any:
        """So that it can be left out of the identity by name."""
        if isinstance(data, dict) and isinstance(kwargs := data.get("model_kwargs"), dict):
            return {**data, "model_kwargs": {"device_map": None, **kwargs}}
        return data

    @model_validator(mode="after")
    def _says_what_is_read(self) -> ResidualParameters:
        if self.prompts and self.prompt_file is not None:
            raise ValueError("give `prompts` or `prompt_file`, not both")
        if not self.prompts and self.prompt_file is None:
            raise ValueError("there are no prompts: give `prompts` or `prompt_file`")
        if blank := [index for index, prompt in enumerate(self.prompts) if not prompt.strip()]:
            raise ValueError(f"prompt {blank[0]} is empty")
        if self.multi_pass.enabled and self.embedding_variants:
            raise ValueError("multi_pass and embedding_variants exclude each other: name the runs in multi_pass.runs")
        names = [swap.name for swap in self.embedding_variants]
        if len(set(names)) != len(names):
            raise ValueError("embedding_variants need names of their own")
        return self

    def dtype_of(self, pair: Pair) -> Dtype:
        """Of a pair's weights: its own, or the study's."""
        return pair.dtype or self.dtype

    def passes(self) -> Passes:
        """The runs and comparisons of a capture."""
        return passes_of(self.multi_pass, self.embedding_variants)


def passes_of(multi_pass: MultiPass, swaps: Sequence[Swap]) -> Passes:
    """The factorial, or the plain comparison and its swaps; a run that is asked for twice is one run."""
    if multi_pass.enabled:
        return multi_pass.passes()
    plain = single_pass()
    runs = {(run.forward, run.unembedding): run for run in plain.runs}
    comparisons = {(c.left, c.right): c for c in plain.comparisons}
    for swap in swaps:
        left, right = swap.base.run(f"base:{swap.name}", "base"), swap.sft.run(f"sft:{swap.name}", "sft")
        left, right = (runs.setdefault((run.forward, run.unembedding), run) for run in (left, right))
        comparisons[left.name, right.name] = Comparison(swap.name, left.name, right.name)
    return Passes(tuple(runs.values()), tuple(comparisons.values()))
