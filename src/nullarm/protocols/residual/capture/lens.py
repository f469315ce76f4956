"""The vocabulary projection: every run's logits once, and everything that is read from them or compared through them.

Rows go through in tiles, and the logits of one tile are all that is ever held. Within a tile, a few rows at a time and
one segment of the vocabulary after another, so that what is worked on stays in the cache. There are two passes over the
logits: the first sums their exponentials, the second has probabilities, so that divergences are sums of differences of
log-softmax, never logarithms of a probability.

Shapes: R runs, C comparisons, N rows, d width of the model, V tokens, T tracked tokens, k tokens kept, U distinct
projections. Missing values are NaN. Everything after the matrix product is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import Anatomy

SEGMENTS = 32
"""Parts of the vocabulary; also the columns of a block, of which only the extremes are looked at at first."""
SHORTEST_SEGMENT = 1024
"""Columns that are worth an operation of their own."""
CHUNK = 2048
"""Rows of weights that are multiplied at a time on a CPU: 5 to 14 % quicker than all at once."""
ALMOST_ONE = 1 - 2**-24
"""The largest fp32 number below 1."""
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Budget:
    """How much is worked on at a time.

    Attributes:
        tile_bytes: Logits of all runs that are held at a time.
        block_elements: Logits of all runs in one segment of the rows that go through together, per thread.
    """

    tile_bytes: int
    block_elements: int


ON_CPU = Budget(tile_bytes=512 << 20, block_elements=1 << 17)
"""Tiles of rows enough for a fast matrix product, segments that stay in the second-level cache. Measured: half the tile
costs 10 % of the product, a quarter of the block 3 ns per logit."""
ON_GPU = Budget(tile_bytes=2 << 30, block_elements=1 << 23)
"""Segments that are worth a kernel launch."""


@dataclass(frozen=True, eq=False)
class Unembedding:
    """A vocabulary projection: z = W h + b, times the scale, then c · tanh(z / c) where there is a softcap c.

    Attributes:
        weight: [V, d] W.
        bias: [V] b.
        softcap: c.
        logit_scale: The scale.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0

    def rows(self, ids: Tensor) -> Unembedding:
        """The projection onto the tokens `ids` [V'] alone; where these are the first ones, a view."""
        first = torch.equal(ids, torch.arange(len(ids), device=ids.device))
        chosen = slice(len(ids)) if first else ids
        return replace(self, weight=self.weight[chosen], bias=None if self.bias is None else self.bias[chosen])

    def to(self, device: torch.device) -> Unembedding:
        """The projection on a device; itself where it is there."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def finish(self, products: Tensor) -> None:
        """Turn W h [N, V] into logits, in place."""
        if self.bias is not None:
            products += self.bias
        if self.logit_scale != 1.0:
            products *= self.logit_scale
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)


def unembedding_of(anatomy: Anatomy) -> Unembedding:
    """The vocabulary projection of a model; none of it is a copy."""
    bias = anatomy.head.bias
    return Unembedding(anatomy.head.weight.detach(), None if bias is None else bias.detach(), anatomy.softcap)


class Projection(NamedTuple):
    """What is read from the logits. Ids are positions in the vocabulary that was projected on.

    Attributes:
        entropy: [R, N] entropy of the lens distribution, nats.
        loss: [R, N] −log p of the next token, nats.
        rank: [R, N] 1 + number of logits above that of the next token.
        tracked: [R, N, T] logits of the tracked tokens.
        top_values: [R, N, k] largest logits, descending.
        top_ids: [R, N, k] their tokens.
        kl_div: [C, N] KL(right ‖ left), nats.
        kl_reverse: [C, N] KL(left ‖ right), nats.
        js: [C, N] Jensen–Shannon divergence, nats.
        overlap: [C, N] share of the top k that left and right have in common; missing where k is 0.
        up_values: [C, N, k] largest logits of right − left, descending.
        up_ids: [C, N, k] their tokens.
        down_values: [C, N, k] smallest logits of right − left, ascending.
        down_ids: [C, N, k] their tokens.
    """

    entropy: Tensor
    loss: Tensor
    rank: Tensor
    tracked: Tensor
    top_values: Tensor
    top_ids: Tensor
    kl_div: Tensor
    kl_reverse: Tensor
    js: Tensor
    overlap: Tensor
    up_values: Tensor
    up_ids: Tensor
    down_values: Tensor
    down_ids: Tensor


RUN_FIELDS = Projection._fields.index("kl_div")
"""Fields before this one have an entry per run, the others one per comparison."""

Pairs = Sequence[tuple[int, int]]
"""Left and right, by index."""


@torch.no_grad()
def project(
    states: Sequence[Tensor],
    unembeddings: Sequence[Unembedding],
    pairs: Pairs,
    *,
    top_k: int,
    tracked: Tensor,
    next_ids: Tensor,
) -> Projection:
    """Project the states of every run onto the vocabulary and compare the runs.

    Runs that are given the same tensor and the same unembedding are projected once.

    Args:
        states: Per run [N, d], with the final norm applied.
        unembeddings: Per run, all of one vocabulary.
        pairs: Comparisons: left and right run.
        top_k: k.
        tracked: [T] tokens whose logits are wanted; −1 for one that is not in the vocabulary.
        next_ids: [N] the token that follows; −1 where there is none.

    Raises:
        ModelError: The vocabularies differ in size, or `top_k` is larger than they are.
    """
    vocabulary = _vocabulary(unembeddings, top_k)
    runs = list(zip(states, unembeddings, strict=True))
    place: dict[tuple[int, int], int] = {}
    places = [place.setdefault((id(state), id(unembedding)), len(place)) for state, unembedding in runs]
    distinct = [runs[places.index(i)] for i in range(len(place))]
    compared = [(places[left], places[right]) for left, right in pairs]
    tiles = [
        _joined([_measure(*block, compared, top_k, tracked) for block in _blocks(logits, next_ids[rows])])
        for rows, logits in _tiles(distinct, len(next_ids), vocabulary)
    ]
    found = _joined(tiles)
    return Projection(*(field[places] for field in found[:RUN_FIELDS]), *found[RUN_FIELDS:])


def _vocabulary(unembeddings: Sequence[Unembedding], top_k: int) -> int:
    sizes = [len(unembedding.weight) for unembedding in unembeddings]
    if len(set(sizes)) > 1:
        raise ModelError("the vocabularies differ in size", value=sizes, valid="one, by `Unembedding.rows`")
    if top_k > sizes[0]:
        raise ModelError("top_k is larger than the vocabulary", value=top_k, valid=f"0 to {sizes[0]}")
    return sizes[0]


def _tiles(
    distinct: Sequence[tuple[Tensor, Unembedding]], rows: int, vocabulary: int
) -> Iterator[tuple[slice, Tensor]]:
    """Logits [U, n, V] of consecutive rows; each tile overwrites the one before."""
    device = distinct[0][0].device
    most = _budget(device).tile_bytes // (4 * len(distinct) * vocabulary)
    parts = _even_parts(rows, most)
    held = torch.empty(len(distinct), parts[0].stop, vocabulary, dtype=torch.float32, device=device)
    for part in parts:
        logits = held[:, : part.stop - part.start]
        for unembedding in dict.fromkeys(unembedding for _, unembedding in distinct):
            users = [(state[part], z) for (state, own), z in zip(distinct, logits, strict=True) if own is unembedding]
            _multiply(users, unembedding)
        yield part, logits


def _blocks(logits: Tensor, next_ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Sequence[Tensor]]]:
    """Rows of a tile that are worked on together, and room for the exponentials of each of their segments."""
    threads = torch.get_num_threads() if logits.device.type == "cpu" else 1
    elements = _budget(logits.device).block_elements * threads
    parts = _even_parts(logits.shape[1], elements // (len(logits) * _width(logits.shape[-1])))
    room = [torch.empty_like(z) for z in _segments(logits[:, parts[0]])]
    for rows in parts:
        yield logits[:, rows], next_ids[rows], [p[:, : rows.stop - rows.start] for p in room]


def _multiply(users: Sequence[tuple[Tensor, Tensor]], unembedding: Unembedding) -> None:
    """Write logits [n, V] of all states [n, d] that share an unembedding.

    A state is rounded to the weights' dtype, as the model's own head would have it; products are summed in fp32. A CPU
    is slow in half precision, and there weights are upcast, a chunk at a time.
    """
    weight = unembedding.weight
    on_cpu = weight.device.type == "cpu"
    chunk = CHUNK if on_cpu else len(weight)
    for start in range(0, len(weight), chunk):
        columns = slice(start, start + chunk)
        factor = weight[columns].float() if on_cpu else weight
        for state, logits in users:
            rounded = state.to(weight.dtype).to(factor.dtype)
            if factor.dtype == torch.float32:
                torch.mm(rounded, factor.T, out=logits[:, columns])
            else:
                torch.mm(rounded, factor.T, out_dtype=torch.float32, out=logits)
    for _, logits in users:
        unembedding.finish(logits)


def _measure(
    logits: Tensor, next_ids: Tensor, room: Sequence[Tensor], pairs: Pairs, top_k: int, tracked: Tensor
) -> Projection:
    """Everything about the rows of one block, from its logits [U, n, V]."""
    rows = len(next_ids)
    highest = _block_maxima(logits)
    total, normaliser, entropy = _exponentiate(logits, highest.amax(-1, keepdim=True), room)
    following = _at(logits, next_ids[:, None])
    above = torch.zeros_like(following)
    comparisons = [_Comparison(highest[i], normaliser[j] - normaliser[i]) for i, j in pairs]
    for z, e in zip(_segments(logits), room, strict=True):
        p = e.div_(total)
        for (i, j), comparison in zip(pairs, comparisons, strict=True):
            comparison.add(z[i], z[j], p[i], p[j])
        # As numbers: truth values are slow to compare and to count on a CPU.
        above += torch.gt(z, following, out=p).sum(-1, keepdim=True)
    top_values, top_ids = _largest(logits.shape[-1], top_k, highest, lambda columns: logits.gather(-1, columns))
    between = logits.new_empty(4, len(pairs), rows)
    values, ids = (like.new_empty(2, len(pairs), rows, top_k) for like in (top_values, top_ids))
    for c, ((i, j), comparison) in enumerate(zip(pairs, comparisons, strict=True)):
        between[:3, c] = comparison.divergences()
        between[3, c] = _overlap(top_ids[i], top_ids[j])
        values[:, c], ids[:, c] = comparison.largest(logits[i], logits[j], top_k)
    return Projection(
        entropy=entropy.squeeze(-1),
        loss=(normaliser - following).squeeze(-1),
        rank=(above + 1).masked_fill_(following.isnan(), torch.nan).squeeze(-1),
        tracked=_at(logits, tracked.expand(rows, -1)),
        top_values=top_values,
        top_ids=top_ids,
        kl_div=between[0],
        kl_reverse=between[1],
        js=between[2],
        overlap=between[3],
        up_values=values[0],
        up_ids=ids[0],
        down_values=values[1],
        down_ids=ids[1],
    )


class _Comparison:
    """Two runs in the rows of a block, read one segment of the vocabulary after another.

    Args:
        like: [n, w] of the width of a segment.
        shift: [n, 1] right normaliser − left normaliser.
    """

    def __init__(self, like: Tensor, shift: Tensor) -> None:
        self._shift = shift
        self._kl_div, self._kl_reverse, self._js = shift.new_zeros(3, len(shift))
        self._most, self._least = torch.full_like(like, -torch.inf), torch.full_like(like, torch.inf)

    def add(self, left: Tensor, right: Tensor, p: Tensor, q: Tensor) -> None:
        """Read a segment: logits and probabilities [n, width] of left and right.

        Jensen–Shannon is Σ ½ [q log(q/m) + p log(p/m)] with m = ½ (p + q); with t = (q − p)/(q + p), q/m = 1 + t and
        p/m = 1 − t, where log1p is exact for runs that hardly differ.
        """
        rise = right - left
        for extreme, better in ((self._most, torch.maximum), (self._least, torch.minimum)):
            place = extreme[:, : rise.shape[-1]]
            better(place, rise, out=place)
        log_ratio = rise.sub_(self._shift)
        t = (q - p).div_((p + q).clamp_min_(SMALLEST)).clamp_(-ALMOST_ONE, ALMOST_ONE)
        self._kl_div += (q * log_ratio).sum(-1)
        self._kl_reverse -= log_ratio.mul_(p).sum(-1)
        self._js += torch.log1p(t).mul_(q).sum(-1) + t.neg_().log1p_().mul_(p).sum(-1)

    def divergences(self) -> Tensor:
        """[3, n] KL(right ‖ left), KL(left ‖ right) and Jensen–Shannon.

        Sums of terms of both signs: rounding would make those of nearly equal runs slightly negative, and
        Jensen–Shannon of runs without a common token slightly more than log 2.
        """
        return torch.stack([self._kl_div, self._kl_reverse, (self._js / 2).clamp_max_(log(2))]).clamp_min_(0)

    def largest(self, left: Tensor, right: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Values and tokens [2, n, k] of the largest and of the smallest right − left, from the logits [n, V]."""

        def rise(columns: Tensor) -> Tensor:
            return right.gather(-1, columns) - left.gather(-1, columns)

        up, up_ids = _largest(left.shape[-1], top_k, self._most, rise)
        down, down_ids = _largest(left.shape[-1], top_k, -self._least, lambda columns: -rise(columns))
        return torch.stack([up, -down]), torch.stack([up_ids, down_ids])


def _exponentiate(logits: Tensor, peak: Tensor, room: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Write e^(z − peak) into `room`; its sum, the normaliser log Σ e^z and the entropy, all [U, n, 1]."""
    total, moment = torch.zeros_like(peak), torch.zeros_like(peak)
    for z, e in zip(_segments(logits), room, strict=True):
        below = z - peak
        total += torch.exp(below, out=e).sum(-1, keepdim=True)
        moment += below.mul_(e).sum(-1, keepdim=True)
    return total, peak + total.log(), total.log() - moment / total


def _block_maxima(logits: Tensor) -> Tensor:
    """[U, n, w] largest logit of each block. A block has a column of every segment: the i-th of each."""
    segments = iter(_segments(logits))
    highest = next(segments).clone()
    for z in segments:
        place = highest[..., : z.shape[-1]]
        torch.maximum(place, z, out=place)
    return highest


def _largest(
    vocabulary: int, top_k: int, maxima: Tensor, values_at: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The k largest values and their columns [..., k], descending.

    The k largest lie in the k blocks of the largest maxima, so that only the columns of those are looked at.

    Args:
        vocabulary: V.
        top_k: k.
        maxima: [..., w] of the blocks.
        values_at: Values [..., m] of columns [..., m].
    """
    width = maxima.shape[-1]
    blocks = maxima.topk(min(top_k, width), sorted=False).indices
    starts = torch.arange(0, vocabulary, width, device=blocks.device)
    columns = (blocks[..., None] + starts).flatten(-2)
    # The last segment may be shorter than a block is wide.
    values = values_at(columns.clamp_max(vocabulary - 1)).masked_fill_(columns >= vocabulary, -torch.inf)
    values, best = values.topk(top_k)
    return values, columns.gather(-1, best)


def _overlap(left_ids: Tensor, right_ids: Tensor) -> Tensor:
    """[n] share of the k ids [n, k] of each side that both have; NaN where k is 0."""
    both = torch.cat([left_ids, right_ids], dim=-1).sort(-1).values
    common: Tensor = (both[:, 1:] == both[:, :-1]).sum(-1)
    return common / left_ids.shape[-1]


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    """[U, n, T] logits of the tokens ids [n, T]; NaN for −1."""
    return logits.gather(-1, ids.clamp_min(0).expand(len(logits), -1, -1)).masked_fill_(ids < 0, torch.nan)


def _segments(logits: Tensor) -> Sequence[Tensor]:
    return torch.split(logits, _width(logits.shape[-1]), dim=-1)


def _width(vocabulary: int) -> int:
    """Columns of a segment, the last of which may have fewer."""
    return min(vocabulary, max(-(-vocabulary // SEGMENTS), SHORTEST_SEGMENT))


def _even_parts(rows: int, most: int) -> list[slice]:
    """Slices of nearly the same length, none longer than the first, which has at most `most` rows but at least one."""
    size = -(-rows // -(-rows // max(1, most)))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _budget(device: torch.device) -> Budget:
    return ON_CPU if device.type == "cpu" else ON_GPU


def _joined(parts: Sequence[Projection]) -> Projection:
    return Projection(*(torch.cat(fields, dim=1) for fields in zip(*parts, strict=True)))
