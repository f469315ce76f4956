"""What a study of low-rank compression may set."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nullarm.bench.settings import BenchSettings
from nullarm.errors import nearest
from nullarm.protocols.low_rank.allocation.settings import Allocation, Budget
from nullarm.protocols.low_rank.gauge_settings import GaugeSettings
from nullarm.protocols.low_rank.methods.settings import Method
from nullarm.protocols.low_rank.online.settings import OnlineSettings
from nullarm.study.spec import Name, Strict

LEFT_OUT = {
    "model": "named by the content of its files, among the cell's inputs",
    "text": "named by its content, among the cell's inputs",
    "batch_size": "moves results by rounding only",
    "layers_at_once": "how often the calibration text is read, not what it says",
    "rerun": "names the contrast that the source's files are written for",
}
"""Parameters outside of a cell's identity, and why."""

Slot = Literal["q", "k", "v", "o", "gate", "up", "down"]


class Speculation(Strict):
    """Decoding with a compressed model that drafts and the model as loaded that verifies."""

    drafter: Name
    """The arm whose model drafts."""
    tokens: int = Field(default=4, ge=1, le=64)
    """Tokens of a draft (γ)."""
    temperature: float = Field(default=0.0, ge=0)
    """Of both models; 0 is greedy."""
    prompts: int = Field(default=64, ge=1)
    """Prompts, from the evaluation text, that acceptance is measured on."""
    prompt_tokens: int = Field(default=32, ge=1)
    """Tokens of each prompt."""
    new_tokens: int = Field(default=32, ge=1)
    """Tokens written after each prompt."""


class CompressionArm(Strict):
    """What one arm does to the model. An arm that says nothing is the model as it is loaded."""

    method: Method | None = None
    """How matrices are made smaller."""
    slots: tuple[Slot, ...] = ()
    """Which matrices of each layer."""
    budget: Budget | None = None
    """How small; rounding has it in its bits."""
    allocation: Allocation = Allocation()
    """How ranks are dealt out over the layers."""
    gauge: GaugeSettings | None = None
    """Scale the channels of the residual stream before truncation, and back after it."""
    online: OnlineSettings | None = None
    """Adapt each shared basis on a stream of the training text."""
    speculation: Speculation | None = None
    """Instead of all that: draft with another arm's model, verify with the model as loaded."""

    @property
    def treated(self) -> bool:
        """Whether weights are changed."""
        return self.method is not None

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> CompressionArm:
        said = self.model_fields_set - {"method"}
        if self.method is None:
            if vain := sorted(said - {"speculation"}):
                raise ValueError(f"without a `method` nothing is compressed: {', '.join(vain)} says nothing")
            return self
        if self.speculation is not None:
            raise ValueError(
                "an arm with `speculation` verifies with the model as loaded: `method` belongs to its drafter"
            )
        if not self.slots or len(set(self.slots)) < len(self.slots):
            raise ValueError("`slots` names the matrices to compress, each once, such as [q, k, v]")
        kind = self.method.kind
        rounds = kind == "round_to_nearest"
        if rounds and (vain := sorted(said & {"budget", "allocation", "gauge", "online"})):
            raise ValueError(f"rounding has no ranks: {', '.join(vain)} says nothing")
        if not rounds and self.budget is None:
            raise ValueError("a `budget` is missing, such as {keep: 0.5} or {rank: 1024}")
        if self.gauge is not None and kind not in ("grc", "svd"):
            raise ValueError(f"method {kind} weighs channels by itself: `gauge` goes with grc and svd")
        if self.online is not None and (kind != "grc" or self.gauge is not None):
            raise ValueError("`online` adapts an orthonormal shared basis, which only method grc without a gauge has")
        return self


class Sweep(Strict):
    """Layer × slot × rank × method, one at a time."""

    methods: tuple[Method, ...] = Field(min_length=1)
    """Low-rank methods; a shared one takes the groups of slots that share an input."""
    slots: tuple[Slot, ...] = Field(min_length=1)
    """Which matrices of each layer."""
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.75, 0.5, 0.25)
    """Shares of the dense matrix's numbers; each gives a rank."""
    windows: int = Field(default=8, ge=1)
    """Windows of the evaluation text that the change of the negative log-likelihood is measured on."""

    @model_validator(mode="after")
    def _methods_have_ranks(self) -> Sweep:
        if any(method.kind == "round_to_nearest" for method in self.methods):
            raise ValueError("round_to_nearest has no ranks to sweep")
        return self


class LowRankParameters(Strict):
    """Parameters of protocol `low_rank`."""

    model: str
    """Reference of the model."""
    text: dict[str, Any]
    """Documents, `kind` and settings: calibration reads the train split alone, perplexity the test split."""
    compression: dict[Name, CompressionArm]
    """What each arm does, by the arm's name."""
    calibration_tokens: int = Field(default=262_144, ge=1)
    """Tokens of the train split that inputs are measured on, from the front."""
    evaluation_tokens: int | None = Field(default=None, ge=2)
    """Tokens of the test split, from the front; all when left out."""
    window: int = Field(default=2048, ge=2)
    """Tokens of a window."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens from one window to the next; the window's length when left out."""
    joined: bool = False
    """Read the documents of the test split as one text, as published perplexities of WikiText-2 do, instead of each
    from its own beginning."""
    sweep: Sweep | None = None
    """The per-layer sweep."""
    bench: BenchSettings = BenchSettings()
    """How arms are timed against each other, for contrasts with `test: paired_blocks`."""
    rerun: Name | None = None
    """The contrast of the null re-run, for which the source's `mcr_ablation` files are written."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model, and of the factors as they are stored."""
    batch_size: int = Field(default=8, ge=1)
    """Windows of a forward pass."""
    layers_at_once: int = Field(default=8, ge=1)
    """Layers whose inputs are measured in one pass over the calibration text; each takes memory."""

    @model_validator(mode="after")
    def _names_are_known(self) -> LowRankParameters:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves tokens between windows of {self.window} unread")
        if self.calibration_tokens < self.window:
            raise ValueError(f"calibration_tokens {self.calibration_tokens} are less than one window of {self.window}")
        for name, arm in self.compression.items():
            if arm.online is not None:
                self._refuse_short_stream(name, arm.online)
            if arm.speculation is not None:
                _refuse_unknown(f"compression.{name}.speculation.drafter", arm.speculation.drafter, self._compressed)
            like = arm.budget.same_bytes_as if arm.budget else None
            if like is not None:
                _refuse_unknown(f"compression.{name}.budget.same_bytes_as", like, self._with_bytes_of_their_own)
        return self

    def _refuse_short_stream(self, name: str, online: OnlineSettings) -> None:
        least = online.blocks * max(1, online.block_tokens // self.window) * self.window
        if self.calibration_tokens < least:
            raise ValueError(
                f"compression.{name}.online reads {online.blocks} blocks, {least} tokens in whole windows of"
                f" {self.window}: calibration_tokens is {self.calibration_tokens}"
            )

    @property
    def _compressed(self) -> list[str]:
        return [name for name, arm in self.compression.items() if arm.treated]

    @property
    def _with_bytes_of_their_own(self) -> list[str]:
        arms = {name: self.compression[name] for name in self._compressed}
        return [name for name, arm in arms.items() if not (arm.budget and arm.budget.same_bytes_as)]


def _refuse_unknown(key: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{key} is {name!r}, which is none of them{nearest(name, known)}; valid: {sorted(known)}")
