"""Which drafted tokens stay, so that what is written has the verifier's distribution: exact rejection sampling.

Sources: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1; Chen et al.
2023, "Accelerating Large Language Model Decoding with Speculative Sampling", algorithm 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nullarm.errors import UsageError


class Rule(ABC):
    """How a token is drawn from logits, and how drafted tokens are judged. Nothing here waits for the device."""

    @abstractmethod
    def draw(self, logits: Tensor) -> Tensor:
        """One token a row: [row, vocabulary] logits to [row] ids."""

    @abstractmethod
    def judge(self, verifier: Tensor, drafter: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """Judge n drafted tokens, n ≥ 0.

        Args:
            verifier: [n + 1, vocabulary] logits, at each drafted token and after the last.
            drafter: [n, vocabulary] logits that the tokens were drawn from.
            drafted: [n] ids.

        Returns:
            How many stay, [], from the first on; and the verifier's own token after them, [1].
        """


class Greedy(Rule):
    """Temperature 0: a drafted token stays while it is the verifier's most likely one."""

    def draw(self, logits: Tensor) -> Tensor:
        """The most likely token."""
        return logits.argmax(-1)

    def judge(self, verifier: Tensor, drafter: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """Keep up to the first difference."""
        wanted = verifier.argmax(-1)
        accepted = _before_first_false(drafted == wanted[:-1])
        return accepted, wanted.index_select(0, accepted[None])


class Sampling(Rule):
    """Drawing from softmax(logits / temperature); what stays is distributed as if the verifier had drawn it.

    Args:
        temperature: Above 0.
        generator: Of the models' device; every draw comes from it.
    """

    def __init__(self, temperature: float, generator: torch.Generator) -> None:
        self._temperature, self._generator = temperature, generator

    def draw(self, logits: Tensor) -> Tensor:
        """A token of the distribution."""
        return self._drawn(self._distribution(logits))

    def judge(self, verifier: Tensor, drafter: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """Keep each with probability min(1, p / q); after the first refusal, draw from the residual distribution.

        After the last token q is 0, and the residual distribution is p itself: the bonus token.
        """
        p, q = self._distribution(verifier), self._distribution(drafter)
        ids = drafted[:, None]
        chances = acceptance(p[:-1].gather(1, ids), q.gather(1, ids))[:, 0]
        draws = torch.rand(chances.shape, generator=self._generator, dtype=chances.dtype, device=chances.device)
        accepted = _before_first_false(draws < chances)
        at = accepted[None]
        q_or_none = torch.cat([q, torch.zeros_like(p[:1])])
        return accepted, self._drawn(residual(p.index_select(0, at), q_or_none.index_select(0, at)))

    def _distribution(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / self._temperature, -1)

    def _drawn(self, distribution: Tensor) -> Tensor:
        return torch.multinomial(distribution, 1, generator=self._generator)[:, 0]


def rule(temperature: float, generator: torch.Generator) -> Rule:
    """The rule of a temperature; 0 is greedy and draws nothing.

    Raises:
        UsageError: The temperature is below 0.
    """
    if not temperature >= 0:
        raise UsageError("a temperature is negative", value=temperature, valid="0 (greedy) or more")
    return Sampling(temperature, generator) if temperature else Greedy()


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """min(1, p / q): how likely a token stays that the drafter drew with q > 0 and the verifier gives p; any shape."""
    return (p / q).clamp(max=1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(0, p − q), normalised: what the verifier's token is drawn from where a drafted one was refused.

    Where q ≥ p everywhere, which only rounding can bring about, nothing is left over, and it is p.

    Args:
        p: [..., vocabulary] the verifier's distribution.
        q: [..., vocabulary] the drafter's.
    """
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


def _before_first_false(kept: Tensor) -> Tensor:
    return kept.long().cumprod(0).sum()
