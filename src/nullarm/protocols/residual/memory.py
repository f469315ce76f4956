"""What capturing a pair takes of a GPU's memory, from the models' configurations: no weights are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nullarm.errors import ModelError
from nullarm.models.facts import parameter_count, shape_facts
from nullarm.models.families import ShapeFacts
from nullarm.models.reference import parse
from nullarm.protocols.residual.parameters import Pair, ResidualParameters
from nullarm.sites.devices import DEVICES, Device

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TILE_BYTES = 2 * GIB
"""Most that the lens holds of logits and what it makes of them; a small vocabulary needs less."""
USABLE = 0.92
"""Share of a GPU's memory that is left beside the CUDA context and what the allocator cannot use."""

Placement = Literal["together", "sequential", "no"]


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device while a pair is captured.

    Attributes:
        weights_bytes: All weights of both models.
        blocks_bytes: Of these, the blocks of each model.
        activation_bytes: Everything else, when a batch is measured.
        pass_bytes: Of these, what is there while a model makes one pass.
    """

    weights_bytes: int
    blocks_bytes: tuple[int, ...]
    activation_bytes: int
    pass_bytes: int

    @property
    def together(self) -> int:
        """With both models on the device."""
        return self.weights_bytes + self.activation_bytes

    @property
    def sequential(self) -> int:
        """With the blocks of one model at a time, and of none while a batch is measured."""
        outside = self.weights_bytes - sum(self.blocks_bytes)
        return outside + max(max(self.blocks_bytes) + self.pass_bytes, self.activation_bytes)


class Fit(NamedTuple):
    """Whether a pair can be captured on a kind of machine, and how."""

    pair: str
    need: MemoryNeed
    device: Device
    placement: Placement


def pair_memory(pair: Pair, parameters: ResidualParameters) -> MemoryNeed:
    """Memory that capturing a pair takes.

    Residuals and normed states, [layers + 1, batch_tokens, d_model] each, of every pass; the widest block at work; what
    the lens holds. A single pass holds its own residuals, and those it is forced onto. There is no KV cache, because
    nothing is generated.

    Raises:
        ModelError: A model's configuration is not at hand or not of a known family.
    """
    width = BYTES[parameters.dtype_of(pair)]
    models = [(shape_facts(ref), parameter_count(ref)) for ref in _loaded(pair)]
    batch = width * parameters.batch_tokens
    stream = batch * max((facts.layers + 1) * facts.hidden_size for facts, _ in models)
    at_work = batch * max(_at_work(facts) for facts, _ in models)
    logits = max(
        facts.layers * parameters.batch_tokens * facts.vocabulary_size * BYTES["float32"] for facts, _ in models
    )
    return MemoryNeed(
        weights_bytes=width * sum(count for _, count in models),
        blocks_bytes=tuple(width * (count - _outside_blocks(facts)) for facts, count in models),
        activation_bytes=_streams(parameters) * stream + at_work + min(logits, TILE_BYTES),
        pass_bytes=2 * stream + at_work,
    )


def fits(pairs: Mapping[str, Pair], parameters: ResidualParameters, devices: Iterable[Device]) -> list[Fit]:
    """How every pair fits every device.

    Raises:
        ModelError: A model's configuration is not at hand or not of a known family.
    """
    needs = {name: pair_memory(pair, parameters) for name, pair in pairs.items()}
    return [
        Fit(name, need, device, _placement(need, device, parameters.placement))
        for device in devices
        for name, need in needs.items()
    ]


def fit_notes(parameters: ResidualParameters) -> tuple[str, ...]:
    """Which pairs fit which GPU, in a few lines: what each needs, then one line for every size of GPU."""
    known, unknown = _known(parameters)
    gpus = [device for device in DEVICES.values() if device.memory_bytes]
    rows = fits(known, parameters, gpus)
    if not rows:
        return unknown
    most = max(row.need.together for row in rows) / GIB
    if all(row.placement == "together" for row in rows):
        return (f"memory at most {most:.1f} GiB with both models: every pair fits every GPU", *unknown)
    needs = {row.pair: f"{row.pair} {row.need.together / GIB:.1f}" for row in rows}
    sizes = sorted({device.memory_bytes for device in gpus})
    lines = [_line([row for row in rows if row.device.memory_bytes == size]) for size in sizes]
    return (f"memory with both models, GiB: {', '.join(needs.values())}", *lines, *unknown)


def _known(parameters: ResidualParameters) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """The pairs whose memory can be computed, and a note for each other one."""
    known, unknown = {}, []
    for name, pair in parameters.pairs.items():
        try:
            pair_memory(pair, parameters)
            known[name] = pair
        except ModelError as error:
            unknown.append(f"memory of {name} is not known: {error.problem}: {error.value}")
    return known, tuple(unknown)


def _line(rows: list[Fit]) -> str:
    """Of the GPUs of one size."""
    names = " and ".join(dict.fromkeys(row.device.name for row in rows))
    words: dict[Placement, str] = {"together": "fits", "sequential": "one model at a time", "no": "too small for"}
    told = []
    for placement, word in words.items():
        pairs = list(dict.fromkeys(row.pair for row in rows if row.placement == placement))
        told += (
            [f"{word} {'every pair' if len(pairs) == len({r.pair for r in rows}) else ', '.join(pairs)}"]
            if pairs
            else []
        )
    return f"{names} ({rows[0].device.memory_bytes / GIB:.0f} GiB): {'; '.join(told)}"


def _placement(need: MemoryNeed, device: Device, asked: str) -> Placement:
    room = USABLE * device.memory_bytes
    if asked != "sequential" and need.together <= room:
        return "together"
    return "sequential" if asked != "together" and need.sequential <= room else "no"


def _loaded(pair: Pair) -> list[str]:
    """What is loaded: one model for a pair of it with itself; an adapter as a second copy of its base, merged."""
    if pair.sft == pair.base and pair.sft_weights == "trained":
        return [pair.base]
    adapter = parse(pair.sft, adapter=True).kind == "adapter"
    return [pair.base, pair.base if adapter else pair.sft]


def _outside_blocks(facts: ShapeFacts) -> int:
    """Parameters of embedding and unembedding."""
    return facts.hidden_size * facts.vocabulary_size * (1 if facts.tied_embeddings else 2)


def _at_work(facts: ShapeFacts) -> int:
    """Numbers per token inside a block: residual and normed input, queries, keys, values, and the gated MLP."""
    return 2 * facts.hidden_size + 2 * facts.query_size + 2 * facts.key_value_size + 3 * facts.intermediate_size


def _streams(parameters: ResidualParameters) -> int:
    """Residual streams held at once: of every pass, of every pass onto another's residuals, and each run's normed."""
    passes = parameters.passes()
    ends = [(passes.run(c.left), passes.run(c.right)) for c in passes.comparisons]
    forced = {(right.forward, left.forward) for left, right in ends if left.body != right.body}
    return len(passes.forwards) + len(passes.runs) + (len(forced) if parameters.direct_change else 0)
