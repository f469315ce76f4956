"""Speculative decoding as a subject of the bench."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nullarm.bench.subjects import Subject, Timing
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import Rule
from nullarm.protocols.low_rank.speculation.result import Speculation


class SpeculativeDecoding(Subject):
    """A drafter and a verifier write after one prompt, exactly as many tokens as asked, past any end of text.

    A round writes several tokens at once. Each has the round's seconds divided by how many there were as its latency.

    Args:
        name: What a report calls it.
        verifier: Causal LM in evaluation mode, whose text it is.
        drafter: One with the same vocabulary, on the same device.
        prompt: [1, position] token ids.
        draft_length: γ, most tokens drafted in a round.
        rule: How tokens are drawn and judged.

    Attributes:
        runs: What every run counted, in order, until somebody takes it away.
    """

    def __init__(
        self, name: str, verifier: Any, drafter: Any, prompt: Tensor, *, draft_length: int, rule: Rule
    ) -> None:
        self.name = name
        self._models, self._prompt = (verifier, drafter), prompt
        self._draft_length, self._rule = draft_length, rule
        self.runs: list[Speculation] = []

    def run(self, tokens: int) -> Timing:
        """Write so many tokens.

        Raises:
            UsageError: As `speculate`.
            ModelError: As `speculate`.
        """
        found = speculate(*self._models, self._prompt, tokens, draft_length=self._draft_length, rule=self._rule)
        self.runs.append(found)
        latencies_s = tuple((r.draft_s + r.verify_s) / r.written for r in found.rounds for _ in range(r.written))
        return Timing(found.prefill_s, latencies_s, len(found.tokens))
