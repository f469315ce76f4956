"""What a study of key-value communication may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nullarm.errors import nearest
from nullarm.protocols.kv_communication.wire.codec import NAMED, Bits, Codec, widths
from nullarm.study.spec import Name, Strict
from nullarm.training.settings import TrainSettings

LEFT_OUT = {
    "receiver": "named by the content of its files, among the cell's inputs",
    "sharers": "named by the content of their files, among the cell's inputs",
    "tasks": "named by their content, among the cell's inputs",
    "link": "moves the estimate of transfer times, not what is measured; the report applies it",
    "evaluation_batch_size": "moves results by rounding only",
    "chunk_size": "where a cell can go on, not what it computes",
    "run_tag_prefix": "names directories",
}
"""Parameters outside of a cell's identity, and why."""

Alignment = Literal["offsets", "one_id"]

Order = Literal[
    "front", "back", "middle", "random", "key_norm", "value_norm", "expected_attention", "delta", "two_round"
]
"""Which tokens are sent when not all are: by place, by chance, or those of highest score."""

BY_PLACE: tuple[Order, ...] = ("front", "back", "middle", "random")
"""Orders that look at no cache."""


class FuserShape(Strict):
    """Sizes of a fuser that is trained here; a published one brings its own."""

    hidden_dim: int = Field(default=1024, ge=1)
    """Width of the fuser."""
    intermediate_dim: int = Field(default=1024, ge=1)
    """Inner width of its feed-forward blocks."""
    num_layers: int = Field(default=3, ge=3)
    """Depth, as C2C counts it: input, blocks, output."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the feed-forward blocks."""
    layer_map: Literal["last_aligned", "k_nearest"] = "last_aligned"
    """Which layers of the sharer each layer of the receiver reads."""
    sources: int = Field(default=1, ge=1)
    """How many of them, where the map is `k_nearest`: each has a projector, and their changes are added up."""
    zero_init: bool = False
    """Begin as the identity."""
    final_temperature: float = Field(default=0.001, gt=0)
    """Of the gates at the end of training; they begin at 1."""

    @model_validator(mode="after")
    def _sources_are_those_of_the_map(self) -> FuserShape:
        if self.sources > 1 and self.layer_map != "k_nearest":
            raise ValueError(f"layer_map {self.layer_map} has one source for each layer: `sources` says nothing")
        return self


class FuserSettings(Strict):
    """Where a fuser comes from: from a directory, or from training."""

    sharer: Name
    """The sharer it reads, one of `sharers`."""
    directory: str | None = None
    """Of a C2C checkpoint: a local directory, or `hf:REPO/PATH[@REVISION]`; trained here when left out."""
    shape: FuserShape = FuserShape()
    """Sizes, where it is trained from nothing."""
    start_from: Name | None = None
    """A fuser of this study to go on from, its gates fixed where they are; its shape is taken over."""
    training: TrainSettings | None = None
    """How it is trained."""
    train_items: int | None = Field(default=None, ge=1)
    """Training items, from the front of the split; all when left out."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longer training examples, prompt and answer, are left out."""
    alignment: Alignment = "offsets"
    """Across tokenisers, in training: see the channel's."""
    codecs: tuple[Name, ...] = ()
    """Quantisation-aware: each step draws one of these codecs for the sharer's cache. None: the cache as it is."""

    @model_validator(mode="after")
    def _has_one_source(self) -> FuserSettings:
        if (self.directory is None) == (self.training is None):
            raise ValueError("a fuser has either a `directory` or `training`")
        trained_on = {"start_from": self.start_from, "codecs": self.codecs, "train_items": self.train_items}
        if self.directory is not None and (vain := [name for name, value in trained_on.items() if value]):
            raise ValueError(f"a fuser with a `directory` is not trained: {', '.join(vain)} says nothing")
        if "shape" in self.model_fields_set and (self.directory is not None or self.start_from is not None):
            raise ValueError(
                "a fuser from a `directory`, or that starts from another, has its shape: `shape` says nothing"
            )
        return self


class Allocation(Strict):
    """Bits by stream: each stream of the sharer at the width that costs least for its bytes."""

    bits: tuple[Bits, ...] = ()
    """Widths to choose from; all that the codec has when left out."""
    mean_bits: float = Field(gt=0, le=8)
    """Budget: as many bytes as the codec takes with all streams at this many bits, in between two widths as well."""

    @model_validator(mode="after")
    def _budget_suffices(self) -> Allocation:
        if len(self.bits) == 1:
            raise ValueError(f"there is nothing to choose: `bits` is {self.bits[0]} alone")
        if self.bits and not min(self.bits) <= self.mean_bits <= max(self.bits):
            raise ValueError(f"mean_bits {self.mean_bits:g} is not within `bits`, {min(self.bits)} to {max(self.bits)}")
        return self


class Channel(Strict):
    """How one arm's receiver gets to know what the sharer knows."""

    via: Literal["fuser", "receiver", "sharer", "text"] = "fuser"
    """By fused caches; not at all (the receiver alone); not at all (the sharer alone); by text the sharer writes."""
    sharer: Name | None = None
    """Via `sharer` and `text`: which sharer; the first when left out."""
    fusers: tuple[Name, ...] = ()
    """Fusers by name, one for each sharer that sends; the study's first when left out."""
    combine: Literal["sequential", "parallel"] = "sequential"
    """Several fusers one after the other, or all on the receiver's own cache, their changes added."""
    sharer_cache: Literal["own", "zeroed", "shuffled"] = "own"
    """What is sent: the cache of this item; zeros; the cache of another item."""
    codec: Name = "bf16"
    """Codec by name."""
    allocation: Allocation | None = None
    """Bits by stream instead of the codec's own."""
    proportion: float = Field(default=1.0, gt=0, le=1)
    """Share of the prompt's tokens that is sent and fused."""
    order: Order = "front"
    """Which ones."""
    alignment: Alignment = "offsets"
    """Across tokenisers: by characters, the sharer reading its own tokens, or (legacy) one sharer id per token."""
    fusion: Literal["whole", "as_it_goes"] = "whole"
    """Both prefills first, or (legacy) section by section, later ones reading what was fused before."""
    text_bytes: int | None = Field(default=None, ge=1)
    """Of text, what is sent at most, UTF-8, cut at a character."""

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Channel:
        fused = {
            "fusers",
            "sharer_cache",
            "codec",
            "allocation",
            "proportion",
            "order",
            "alignment",
            "fusion",
            "combine",
        }
        if self.via != "fuser" and (vain := sorted(self.model_fields_set & fused)):
            raise ValueError(f"via {self.via} sends no cache: {', '.join(vain)} says nothing")
        if self.via != "text" and self.text_bytes is not None:
            raise ValueError(f"via {self.via} sends no text: text_bytes says nothing")
        if self.proportion == 1 and "order" in self.model_fields_set:
            raise ValueError("the whole prompt is sent (proportion 1): order says nothing")
        if len(self.fusers) < 2 and "combine" in self.model_fields_set:
            raise ValueError("there is one fuser: combine says nothing")
        if self.via in ("fuser", "receiver") and self.sharer is not None:
            raise ValueError(f"via {self.via}: sharer says nothing")
        return self


class Grid(Strict):
    """Codec × proportion × order: every combination is an arm, called such as `int8_p0p5_back`."""

    codecs: tuple[Name, ...] = ("int8",)
    """Codecs by name."""
    proportions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.75, 0.5, 0.25, 0.1)
    """Shares of the tokens; 1 is one arm whatever the order."""
    orders: tuple[Order, ...] = ("front", "back")
    """Which tokens."""

    def channels(self) -> dict[str, Channel]:
        """By name."""
        return {
            _grid_name(codec, share, order): _point(codec, share, order)
            for codec in self.codecs
            for share in self.proportions
            for order in (self.orders if share < 1 else ("front",))
        }  # fmt: skip


class Text(Strict):
    """Text-to-text: the sharer writes, the receiver reads it before it answers."""

    request: str | None = None
    """What the sharer is asked, `{prompt}` being the item's prompt. When left out, a chat model is asked for the
    background knowledge in one sentence, any other goes on from the prompt."""
    reply: str = "{text}\n\n{prompt}"
    """What the receiver then reads, where there is no chat template; with one, the text is an earlier turn."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of the text."""


class Link(Strict):
    """The wire between the two models, for the time that a message takes."""

    bandwidth_gbit_s: float = Field(default=1.0, gt=0)
    """Gigabits a second."""
    rtt_s: float = Field(default=0.001, ge=0)
    """Round trip, seconds: a message takes half of it, a request as much again."""

    def seconds(self, message_bytes: float, request_bytes: float = 0) -> float:
        """Time that a message takes, with the request for it where there was one."""
        trips = 1.0 if request_bytes else 0.5
        return trips * self.rtt_s + 8 * (message_bytes + request_bytes) / (self.bandwidth_gbit_s * 1e9)


class KvCommunicationParameters(Strict):
    """Parameters of protocol `kv_communication`."""

    receiver: str
    """Reference of the model that answers."""
    sharers: dict[Name, str] = Field(min_length=1)
    """References of the models that send, by name."""
    fusers: dict[Name, FuserSettings] = Field(default_factory=dict)
    """Fusers by name; an arm that names none uses the first."""
    codecs: dict[Name, Codec] = Field(default_factory=dict)
    """Further codecs by name, beside fp32, bf16, fp16, int8 and int4 (symmetric per head)."""
    channels: dict[Name, Channel]
    """How each arm communicates, by the arm's name."""
    grid: Grid | None = None
    """Further arms, codec × proportion × order; one that equals a channel above is that channel."""
    milestones: tuple[Literal[0, 1, 2, 3, 5], ...] = (0, 1, 2, 3, 5)
    """Which of the runbook's milestones to run: 0 baselines, 1 statistics, 2 codecs, 3 the grid, 5 what follows. The
    budget curves (4) are drawn from whatever was run."""
    tasks: tuple[dict[str, Any], ...] = Field(min_length=1)
    """What is asked: `kind` and settings of each data set. Fusers are trained on the train split of `training_task`."""
    training_task: dict[str, Any] | None = None
    """What fusers are trained and codecs are calibrated on; the first of `tasks` when left out."""
    answer_by: Literal["likelihood", "generation"] = "likelihood"
    """The likeliest choice, or what a greedy continuation says under a strict extractor."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a generated answer."""
    chat_template: bool = False
    """Put every prompt into each model's own chat template, as one user message, thinking off."""
    answer_prefix: str = ""
    """What every answer begins with, put behind the chat template's own beginning, such as `The correct answer is`."""
    text: Text = Text()
    """The text-to-text baseline."""
    calibration_items: int = Field(default=64, ge=1)
    """Items of the dev split that statistics and sensitivities are measured on."""
    limit: int | None = Field(default=None, ge=1)
    """Items of each task, from the front; all when left out."""
    error_share: float = Field(default=0.05, ge=0, le=1)
    """Share of items that may end in an error, which counts as wrong; a cell with more is invalid."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of both models and of the fusers' arithmetic."""
    evaluation_batch_size: int = Field(default=32, ge=1)
    """Items of a forward pass."""
    chunk_size: int = Field(default=200, ge=1)
    """Items between two commits."""
    link: Link = Link()
    """The wire, for times."""
    run_tag_prefix: Name | None = None
    """Ends the names of the runbook's run directories; the study's name when left out."""

    @model_validator(mode="after")
    def _names_are_known(self) -> KvCommunicationParameters:
        for name, fuser in self.fusers.items():
            _refuse_unknown(f"fusers.{name}.sharer", fuser.sharer, self.sharers)
            if fuser.start_from is not None:
                earlier = list(self.fusers)[: list(self.fusers).index(name)]
                _refuse_unknown(f"fusers.{name}.start_from", fuser.start_from, earlier)
                if (sharer := self.fusers[fuser.start_from].sharer) != fuser.sharer:
                    raise ValueError(
                        f"fusers.{name}.start_from: {fuser.start_from!r} reads {sharer!r}, not {fuser.sharer!r}"
                    )
            for codec in fuser.codecs:
                _refuse_unknown(f"fusers.{name}.codecs", codec, self.codec_table)
        if taken := sorted(set(self.codecs) & set(NAMED)):
            raise ValueError(f"codecs.{taken[0]} is known already, as {NAMED[taken[0]]!r}: call yours otherwise")
        for name, channel in self.channels.items():
            _refuse_unknown(f"channels.{name}.codec", channel.codec, self.codec_table)
        for codec in self.grid.codecs if self.grid else ():
            _refuse_unknown("grid.codecs", codec, self.codec_table)
        for name, channel in self.all_channels().items():
            _refuse_unknown(f"channels.{name}.codec", channel.codec, self.codec_table)
            if channel.sharer is not None:
                _refuse_unknown(f"channels.{name}.sharer", channel.sharer, self.sharers)
            for fuser_name in channel.fusers:
                _refuse_unknown(f"channels.{name}.fusers", fuser_name, self.fusers)
            if channel.via == "fuser" and not self.fusers:
                raise ValueError(f"channels.{name} sends a cache, and there are no `fusers`")
            if channel.allocation is not None and len(channel.fusers) > 1:
                raise ValueError(f"channels.{name}: bits are allocated for one sharer at a time")
            if channel.allocation is not None:
                known = widths(self.codec_table[channel.codec])
                if len(known) == 1 or (odd := set(channel.allocation.bits) - set(known)):
                    wrong = f"codes of {sorted(odd)} bits" if len(known) > 1 else "bits to allocate"
                    raise ValueError(f"channels.{name}: codec {channel.codec!r} has no {wrong}; valid: {known}")
                if not min(known) <= channel.allocation.mean_bits <= max(known):
                    raise ValueError(f"channels.{name}.allocation.mean_bits: codec {channel.codec!r} has {known}")
        return self

    @property
    def codec_table(self) -> Mapping[str, Codec]:
        """Every codec by name, the study's own before the built-in ones."""
        return {**NAMED, **self.codecs}

    def all_channels(self) -> dict[str, Channel]:
        """The declared channels, and those of the grid that are not among them."""
        declared = {_content(channel): name for name, channel in self.channels.items()}
        grid = self.grid.channels() if self.grid else {}
        if clash := [name for name, c in grid.items() if name in self.channels and _content(c) not in declared]:
            raise ValueError(f"channels.{clash[0]} differs from the arm of the grid of this name: call it otherwise")
        return dict(self.channels) | {name: c for name, c in grid.items() if _content(c) not in declared}

    def fusers_of(self, channel: Channel) -> tuple[str, ...]:
        """Names of the fusers that a channel uses."""
        if channel.via != "fuser":
            return ()
        return channel.fusers or tuple(self.fusers)[:1]


def milestone(channel: Channel, codecs: Mapping[str, Codec] = NAMED) -> int:
    """Which of the runbook's milestones an arm belongs to.

    0: no cache is sent, or a whole one without quantisation; 2: quantised at full length; 3: part of the tokens, by
    place; 5: other fusers than the study's first, bits by stream, tokens chosen by score, legacy ways.

    Args:
        channel: How the arm communicates.
        codecs: By name.
    """
    if channel.via != "fuser" or channel.sharer_cache != "own":
        return 0
    legacy = channel.alignment != "offsets" or channel.fusion != "whole"
    if channel.fusers or channel.allocation or legacy or channel.order not in BY_PLACE:
        return 5
    if channel.proportion < 1:
        return 3
    return 0 if codecs[channel.codec].kind == "raw" else 2


def _content(channel: Channel) -> str:
    return channel.model_dump_json()


def _point(codec: str, share: float, order: Order) -> Channel:
    return Channel(codec=codec) if share == 1 else Channel(codec=codec, proportion=share, order=order)


def _grid_name(codec: str, share: float, order: str) -> str:
    size = f"{share:g}".replace(".", "p")
    return codec if share == 1 else f"{codec}_p{size}_{order}"


def _refuse_unknown(where: str, name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"{where}: no {name!r}{nearest(name, known)}; valid: {sorted(known)}")
