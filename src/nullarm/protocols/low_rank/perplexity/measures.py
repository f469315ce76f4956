"""Perplexities of a text from the likelihoods of its windows. No torch: reports and verdicts read tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from nullarm.errors import InvalidResult
from nullarm.stats.bootstrap import two_way_bootstrap
from nullarm.stats.verdict import Interval

RESAMPLES = 4000
_LARGEST = 709.0  # e to more than this is no float


@dataclass(frozen=True)
class Likelihood:
    """What a model made of one window.

    Attributes:
        item: The window, `document/number`.
        cluster: Its document.
        tokens: Tokens that were scored.
        words: Words that begin in them.
        bytes: Their bytes in UTF-8.
        nll: Their negative log-likelihood, nats, summed.
    """

    item: str
    cluster: str
    tokens: int
    words: int
    bytes: int
    nll: float


@dataclass(frozen=True)
class Perplexities:
    """exp(Σ nll / Σ units) over all windows; None where there are no such units, or it is past the largest float.

    Attributes:
        token: Per token: only between models of one tokeniser.
        word: Per word, in between white space.
        byte: Per byte of UTF-8.
        bits_per_byte: Base-2 logarithm of that.
    """

    token: float | None
    word: float | None
    byte: float | None
    bits_per_byte: float | None


def perplexities(rows: Sequence[Likelihood]) -> Perplexities:
    """Perplexities of the whole text.

    Raises:
        InvalidResult: There are no windows.
    """
    if not rows:
        raise InvalidResult("there are no windows to take a perplexity of", valid="a text of at least two tokens")
    nll = sum(row.nll for row in rows)
    tokens, words, size = (sum(getattr(row, unit) for row in rows) for unit in ("tokens", "words", "bytes"))
    return Perplexities(
        token=_perplexity(nll, tokens),
        word=_perplexity(nll, words),
        byte=_perplexity(nll, size),
        bits_per_byte=nll / size / log(2) if size else None,
    )


def interval(rows: Sequence[Likelihood], rng: np.random.Generator, level: float) -> Interval | None:
    """Bootstrap interval of the token perplexity over documents; None where there are fewer than two.

    A document is drawn with all its tokens, so that its length counts as it does in the estimate Σ nll / Σ tokens.

    Args:
        rows: Likelihoods of all windows.
        rng: Source of the draws.
        level: Two-sided coverage, such as 0.9.
    """
    names, codes = np.unique([row.cluster for row in rows], return_inverse=True)
    if len(names) < 2:
        return None
    tokens = [row.tokens for row in rows]
    per_token = np.repeat([row.nll / row.tokens for row in rows], tokens)
    drawn = two_way_bootstrap(per_token[None], clusters=np.repeat(codes, tokens), resamples=RESAMPLES, rng=rng)
    mean = drawn.interval(level)
    return Interval(exp(mean.low), exp(mean.high), level, f"document bootstrap, {mean.method.partition(', ')[2]}")


def _perplexity(nll: float, units: int) -> float | None:
    return exp(nll / units) if units and nll / units <= _LARGEST else None
