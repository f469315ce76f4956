"""Groups on even grids, but for the largest numbers, which are kept with their places (KVQuant, arXiv 2401.18079)."""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from nullarm.errors import MessageError
from nullarm.protocols.kv_communication.wire.affine import Grouping
from nullarm.protocols.kv_communication.wire.codec import Outlier
from nullarm.protocols.kv_communication.wire.ranges import Ranges
from nullarm.protocols.kv_communication.wire.scheme import Part, flat

_LEAST_STRETCH = 6
"""Numbers of a stretch from which on looking for outliers by stretches is quicker: shares up to 1/36."""


class OutlierScheme(Ranges[Outlier]):
    """As asymmetric, of what is left when the outliers are 0."""

    @property
    def kept(self) -> int:
        """Numbers of a row that are kept."""
        numbers = self.shape.numbers
        return min(numbers, max(1, int(self.codec.share * numbers + 0.5)))

    @property
    def grouping(self) -> Grouping:  # type: ignore[override]
        """Neighbours of one token and head."""
        return Grouping.along(self.shape.heads * self.shape.tokens, self.shape.head_dim, self.codec.group)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Places and numbers of the outliers, bounds and codes."""
        return (torch.int32, self.kept), (torch.float16, self.kept), *self.range_parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outliers apart, all on grids with 0 in their places."""
        x = flat(x)
        places = largest(x, self.kept)
        kept = x.gather(1, places)
        return places.int(), kept.half(), *self.encode_ranges(x.scatter(1, places, 0))

    def decode(self, parts: tuple[Tensor, ...], out: Tensor) -> None:
        """From grids, then the outliers into their places.

        Raises:
            MessageError: A place is out of order or out of range.
        """
        places, kept, *ranges = parts
        ascending = (places[:, 1:] > places[:, :-1]).all()
        if not bool(ascending & (places >= 0).all() & (places < self.shape.numbers).all()):
            raise MessageError("a message is damaged: places of outliers are out of order or out of range")
        numbers = out.flatten(1)
        self.decode_ranges(tuple(ranges), numbers)
        numbers.scatter_(1, places.long(), kept.to(out.dtype))


def largest(x: Tensor, k: int) -> Tensor:
    """Places [rows, k], ascending, of the k numbers of largest magnitude in each row of x [rows, numbers].

    Of equal ones the first count, so that a blob is a function of the numbers, on a CPU as on a GPU.
    """
    # Bits of fp32 without the sign are ordered as magnitudes are, NaN above all.
    magnitudes = x.float().abs().view(torch.int32)
    size = isqrt(x.shape[1] // max(1, k))
    if size < _LEAST_STRETCH:
        return _first_largest(magnitudes, k)
    # They lie in the k stretches of largest maxima: two small selections are quicker than one from all numbers.
    missing = -x.shape[1] % size
    stretches = F.pad(magnitudes, (0, missing), value=-1).unflatten(1, (-1, size))  # type: ignore[no-untyped-call]
    chosen = _first_largest(stretches.amax(2), k)[..., None]
    places = (chosen * size + torch.arange(size, device=x.device)).flatten(1)
    candidates = stretches.gather(1, chosen.expand(-1, -1, size)).flatten(1)
    return places.gather(1, _first_largest(candidates, k))


def _first_largest(values: Tensor, k: int) -> Tensor:
    """Places [rows, k], ascending, of the k largest of each row of int32 values, of equal ones the first."""
    ranked = (values.long() << 32) - torch.arange(values.shape[1], device=values.device)
    return ranked.topk(k, 1, sorted=False).indices.sort(1).values
