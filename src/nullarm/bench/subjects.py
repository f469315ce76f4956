"""What a bench times: a subject that writes tokens, and what one run of it took."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        prefill_s: Seconds to read the prompt but for its last token, which the first step reads.
        latencies_s: [step] seconds of each decoding step, in order. A step writes one token in every row.
        tokens: Written, over all rows; exactly as many as were asked for.
    """

    prefill_s: float
    latencies_s: tuple[float, ...]
    tokens: int

    @property
    def decode_s(self) -> float:
        """Seconds of all decoding steps."""
        return sum(self.latencies_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of decoding; reading the prompt is not in it."""
        return self.tokens / self.decode_s


class Subject(ABC):
    """Something that writes tokens and can do so again and again.

    Attributes:
        name: What a report calls it.
    """

    name: str

    @abstractmethod
    def run(self, tokens: int) -> Timing:
        """Write so many tokens a row, loaded and compiled already, from the same state every time.

        Raises:
            UsageError: The subject cannot write so many.
        """
