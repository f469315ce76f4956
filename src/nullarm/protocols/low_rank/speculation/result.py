"""What speculative decoding counted and took, and the speed-up that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Round:
    """One draft and its verification.

    Attributes:
        proposed: Tokens that the drafter drafted.
        accepted: Of them, those that were written.
        written: Tokens written: `accepted`, and the verifier's own unless the text ended before it.
        draft_s: Seconds of drafting.
        verify_s: Seconds of verifying, and of putting both caches back to what was written.
    """

    proposed: int
    accepted: int
    written: int
    draft_s: float
    verify_s: float

    @property
    def judged(self) -> int:
        """Drafted tokens that met the verifier's verdict: those accepted, and the first that was refused."""
        return min(self.accepted + 1, self.proposed) if self.written > self.accepted else self.accepted


Count = Literal["proposed", "judged", "accepted"]


@dataclass(frozen=True)
class Speculation:
    """One text, or several (`pooled`), written by drafter and verifier.

    Attributes:
        tokens: Ids written after the prompt.
        draft_length: γ, most tokens drafted in a round.
        prefill_s: Seconds for both models to read the prompt but for its last token.
        rounds: In order.
    """

    tokens: tuple[int, ...]
    draft_length: int
    prefill_s: float
    rounds: tuple[Round, ...]

    @property
    def proposed(self) -> tuple[int, ...]:
        """[γ] tokens drafted, by their position in the draft."""
        return self._by_position("proposed")

    @property
    def judged(self) -> tuple[int, ...]:
        """[γ] tokens drafted after which no earlier one of the draft had been refused."""
        return self._by_position("judged")

    @property
    def accepted(self) -> tuple[int, ...]:
        """[γ] drafted tokens that were written. A token that the verifier made is never among them."""
        return self._by_position("accepted")

    @property
    def verifier_tokens(self) -> int:
        """Tokens that the verifier made: in place of a refused one, or as a bonus after the last of a draft."""
        return len(self.tokens) - sum(self.accepted)

    @property
    def draft_s(self) -> float:
        """Seconds of drafting, in all rounds."""
        return sum(r.draft_s for r in self.rounds)

    @property
    def verify_s(self) -> float:
        """Seconds of verifying, in all rounds."""
        return sum(r.verify_s for r in self.rounds)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were written; None when none was drafted."""
        return _share(sum(self.accepted), sum(self.proposed))

    @property
    def acceptance_by_position(self) -> tuple[float | None, ...]:
        """[γ] share of the tokens drafted at each position that were written; None where none was drafted."""
        return tuple(map(_share, self.accepted, self.proposed))

    @property
    def alpha(self) -> float | None:
        """α of Leviathan et al.: how likely a drafted token stays, given that those before it did.

        Accepted over judged. `acceptance` is lower: it also counts tokens that nobody looked at, behind a refused one.
        """
        return _share(sum(self.accepted), sum(self.judged))

    @property
    def tokens_per_round(self) -> float:
        """Tokens written for each pass of the verifier, at most γ + 1."""
        return len(self.tokens) / len(self.rounds)

    @property
    def cost_ratio(self) -> float | None:
        """Measured c: seconds per drafted token over seconds per verification; None when none was drafted."""
        drafted = sum(self.proposed)
        return (self.draft_s / drafted) / (self.verify_s / len(self.rounds)) if drafted else None

    @property
    def predicted_speed_up(self) -> float | None:
        """`predicted_speed_up` at what was measured; None when none was drafted."""
        if self.alpha is None or self.cost_ratio is None:
            return None
        return predicted_speed_up(self.alpha, self.draft_length, self.cost_ratio)

    def _by_position(self, count: Count) -> tuple[int, ...]:
        return tuple(sum(getattr(r, count) > position for r in self.rounds) for position in range(self.draft_length))


def speculation_of(row: Mapping[str, Any]) -> Speculation:
    """What `dataclasses.asdict` made a row of, JSON or not; further keys are not looked at."""
    rounds = tuple(Round(**one) for one in row["rounds"])
    return Speculation(tuple(row["tokens"]), row["draft_length"], row["prefill_s"], rounds)


def pooled(parts: Sequence[Speculation]) -> Speculation:
    """Several texts of one draft length as one."""
    (draft_length,) = {part.draft_length for part in parts}
    return Speculation(
        tokens=tuple(token for part in parts for token in part.tokens),
        draft_length=draft_length,
        prefill_s=sum(part.prefill_s for part in parts),
        rounds=tuple(r for part in parts for r in part.rounds),
    )


def predicted_speed_up(alpha: float, draft_length: int, cost_ratio: float) -> float:
    """How many times as fast as the verifier alone: (1 − α^(γ+1)) / ((1 − α)(γ c + 1)).

    Leviathan et al. 2023, theorem 3.8; the numerator over 1 − α is summed as 1 + α + … + α^γ, which is γ + 1 at α = 1.
    It takes a verification of γ + 1 positions to last as long as one of one.

    Args:
        alpha: How likely a drafted token stays, given that those before it did.
        draft_length: γ.
        cost_ratio: c, seconds per drafted token over seconds per verification.
    """
    return sum(alpha**i for i in range(draft_length + 1)) / (draft_length * cost_ratio + 1)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
