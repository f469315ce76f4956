"""Speculative decoding: rounds of drafting and verifying, with a cache for each model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nullarm.bench.decoding import refuse_length
from nullarm.bench.stopwatch import Stopwatch, stopwatch
from nullarm.errors import ModelError, UsageError
from nullarm.protocols.low_rank.speculation.rejection import Rule
from nullarm.protocols.low_rank.speculation.result import Round, Speculation


@torch.no_grad()
def speculate(
    verifier: Any,
    drafter: Any,
    prompt: Tensor,
    tokens: int,
    *,
    draft_length: int,
    rule: Rule,
    stop: Collection[int] = (),
) -> Speculation:
    """Write what the verifier would write, some tokens for each of its passes.

    With `Greedy`, the tokens are those of the verifier's own greedy decoding; with `Sampling`, they have the
    distribution of its own sampling. Both hold for the logits of a pass over several positions. These differ from
    those of one position at a time by rounding, so that two tokens that are equally likely but for rounding may change
    places. In fp32 this needs a tie; in bf16 near ties are common.

    Args:
        verifier: Causal LM in evaluation mode.
        drafter: One with the same vocabulary, on the same device.
        prompt: [1, position] token ids.
        tokens: To write, exactly, unless the text stops.
        draft_length: γ, most tokens drafted in a round; fewer where fewer are left to write.
        rule: How tokens are drawn and judged.
        stop: Ids that end the text; the one that does is written.

    Raises:
        UsageError: γ or `tokens` is below 1, the prompt is not one row, or the text runs past a model's context.
        ModelError: The models have two vocabularies or devices.
    """
    _refuse(verifier, drafter, prompt, tokens, draft_length)
    writing = _Writing(verifier, drafter, prompt.to(verifier.device), tokens, rule)
    watch = stopwatch(verifier.device)
    watch.mark()
    writing.prefill()
    watch.mark()
    written: list[int] = []
    counts: list[tuple[int, int, int]] = []
    while len(written) < tokens and not (written and written[-1] in stop):
        proposed = min(draft_length, tokens - len(written) - 1)
        accepted, made = writing.round(proposed, watch)
        made = _until_stop(made, stop)
        written += made
        counts.append((proposed, min(accepted, len(made)), len(made)))
    prefill_s, *seconds = watch.intervals_s()
    rounds = (Round(*c, d, v) for c, d, v in zip(counts, seconds[::2], seconds[1::2], strict=True))
    return Speculation(tuple(written), draft_length, prefill_s, tuple(rounds))


class _Reader:
    """A model and the cache of what it has read.

    The cache holds every position, also of layers with a sliding window, whose mask hides the old ones: a cache that
    drops them cannot be put back by every version of transformers.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, DynamicCache()

    @property
    def length(self) -> int:
        """Positions read."""
        length: int = self._cache.get_seq_length()
        return length

    def prefill(self, ids: Tensor) -> None:
        """Read [1, n], n ≥ 0, through the trunk: nobody asks for these logits."""
        if ids.numel():
            self._model.base_model(input_ids=ids, past_key_values=self._cache, use_cache=True)

    def read(self, ids: Tensor) -> Tensor:
        """Read [1, n] after what was read; [n, vocabulary] logits."""
        logits: Tensor = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True).logits
        return logits[0]

    def forget_from(self, length: int) -> None:
        """Keep at most so many positions. `crop` takes how many go, as a negative number, since transformers 5.17."""
        if (surplus := self.length - length) > 0:
            self._cache.crop(-surplus)


class _Writing:
    """A text in the making.

    Between rounds the verifier has read all of it but its last token; the drafter has read as much, or one token less
    when all that it drafted was accepted.
    """

    def __init__(self, verifier: Any, drafter: Any, prompt: Tensor, tokens: int, rule: Rule) -> None:
        self._verifier, self._drafter, self._rule = _Reader(verifier), _Reader(drafter), rule
        self._length = prompt.shape[1]
        self._ids = torch.empty(1, self._length + tokens, dtype=torch.long, device=prompt.device)
        self._ids[:, : self._length] = prompt

    def prefill(self) -> None:
        for reader in (self._verifier, self._drafter):
            reader.prefill(self._ids[:, : self._length - 1])

    def round(self, proposed: int, watch: Stopwatch) -> tuple[int, list[int]]:
        """Draft and verify; marks the end of both. How many drafted tokens were accepted, and all that was written."""
        start, end = self._length, self._length + proposed
        proposals = self._draft(start, end)
        watch.mark()
        logits = self._verifier.read(self._ids[:, start - 1 : end])
        drafted = self._ids[0, start:end]
        accepted, following = self._rule.judge(logits, torch.cat([*proposals, logits[:0]]), drafted)
        count, token, *ids = torch.cat([accepted[None], following, drafted]).tolist()  # the only wait for the device
        self._ids[0, start + count] = token
        self._length = start + count + 1
        for reader in (self._verifier, self._drafter):
            reader.forget_from(self._length - 1)
        watch.mark()
        return count, [*ids[:count], token]

    def _draft(self, start: int, end: int) -> list[Tensor]:
        """Write drafted tokens at positions start to end; the [1, vocabulary] logits of each."""
        proposals = []
        for position in range(start, end):
            proposals.append(self._drafter.read(self._ids[:, self._drafter.length : position])[-1:])
            self._ids[:, position] = self._rule.draw(proposals[-1])
        return proposals


def _until_stop(made: list[int], stop: Collection[int]) -> list[int]:
    """Tokens up to the first that ends the text, it included."""
    ends = (i + 1 for i, token in enumerate(made) if token in stop)
    return made[: next(ends, len(made))]


def _refuse(verifier: Any, drafter: Any, prompt: Tensor, tokens: int, draft_length: int) -> None:
    if draft_length < 1:
        raise UsageError("a draft has no tokens", value=draft_length, valid="a draft length of 1 or more")
    if tokens < 1:
        raise UsageError("there is nothing to write", value=tokens, valid="1 token or more")
    if len(prompt) != 1:
        raise UsageError("speculative decoding writes one text at a time", value=list(prompt.shape), valid="[1, n]")
    for model in (verifier, drafter):
        refuse_length(model, prompt, tokens)
    vocabularies = [model.config.vocab_size for model in (verifier, drafter)]
    if len(set(vocabularies)) > 1:
        raise ModelError("drafter and verifier have two vocabularies", value=vocabularies, valid="the same tokens")
    devices = [str(model.device) for model in (verifier, drafter)]
    if len(set(devices)) > 1:
        raise ModelError("drafter and verifier are on two devices", value=devices, valid="the same device")
