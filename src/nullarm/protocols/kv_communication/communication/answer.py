"""Answers from a cache, fused or not: likelihoods of choices, greedy continuations, logits to train on.

The cache is that of a prompt but for its last token, which is the first to be run here. The vocabulary projection is
applied only where a logit is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.protocols.kv_communication.communication.prefill import Prefilled, advance, cache_of, padded

GROUP_BYTES = 2**30
"""Most that the repeated caches and the logits of one forward pass take, unless a single row takes more."""

NOT_A_NUMBER = -1
"""In place of a token where the logits are none."""

Row = tuple[int, tuple[int, ...]]
"""An item, and the tokens that are run after the last one of its prompt."""


def continue_logits(model: Any, prefilled: Prefilled, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits of what follows each of the tokens that come after a cache, differentiable with respect to the cache.

    Args:
        model: Causal LM in evaluation mode; where its weights are not to be trained, they say so themselves.
        prefilled: The cache.
        ids: [batch, tokens], padded on the right.
        mask: [batch, tokens], true for real tokens.

    Returns:
        [real tokens, vocabulary] fp32, row after row: `targets[mask]` lines up with it.
    """
    parts = anatomy(model)
    hidden = advance(parts, cache_of(prefilled.kv), prefilled.mask, ids, mask)
    return _logits(parts, hidden[mask])


@torch.no_grad()
def choice_log_likelihoods(
    model: Any, prefilled: Prefilled, last_ids: Sequence[int], completions: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-likelihood of each choice of each item, nats, summed over its tokens (fp32); NaN where the logits are.

    Choices of an item that differ in their last token only, as single letters do, share one row; for each other one the
    item's cache is repeated.

    Args:
        model: Causal LM in evaluation mode.
        prefilled: The cache of the prompts but for their last tokens.
        last_ids: Last token of each prompt.
        completions: Per item, the tokens of each of its choices.
    """
    rows: dict[Row, list[int]] = {}
    for item, choices in enumerate(completions):
        for number, choice in enumerate(choices):
            rows.setdefault((item, tuple(choice[:-1])), []).append(number)
    totals = [[0.0] * len(choices) for choices in completions]
    for group in _groups(model, prefilled, rows):
        scored = zip(group, _log_p(model, prefilled, last_ids, group), strict=True)
        sums = {(i, n): _sum(log_p, completions[i][n]) for (i, run), log_p in scored for n in rows[i, run]}
        for (item, number), value in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True):
            totals[item][number] = value
    return totals


@torch.no_grad()
def generate(
    model: Any, prefilled: Prefilled, last_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int] | None]:
    """Greedy continuations of a batch of prompts; a row that has ended is no longer run.

    Args:
        model: Causal LM in evaluation mode.
        prefilled: The cache of the prompts but for their last tokens.
        last_ids: Last token of each prompt.
        max_new_tokens: Most tokens of a continuation.
        stop_ids: Tokens that end it, see `stop_ids_of`.

    Returns:
        Token ids of each row, without the one that ended it; None where the logits were no numbers.
    """
    parts, cache, seen = anatomy(model), cache_of(prefilled.kv), prefilled.mask
    written: list[list[int]] = [[] for _ in last_ids]
    spoilt: set[int] = set()
    running, tokens = list(range(len(last_ids))), list(last_ids)
    for _ in range(max_new_tokens):
        ids = torch.tensor(tokens, device=seen.device)[:, None]
        new = torch.ones_like(ids, dtype=torch.bool)
        chosen = _likeliest(_logits(parts, advance(parts, cache, seen, ids, new)[:, -1]))
        seen = torch.cat([seen, new], dim=1)
        spoilt |= {row for row, token in zip(running, chosen, strict=True) if token == NOT_A_NUMBER}
        going = [place for place, token in enumerate(chosen) if token != NOT_A_NUMBER and token not in stop_ids]
        if not going:
            break
        if len(going) < len(running):
            rows = torch.tensor(going, device=seen.device)
            cache.batch_select_indices(rows)
            seen = seen[rows]
        running, tokens = [running[place] for place in going], [chosen[place] for place in going]
        for row, token in zip(running, tokens, strict=True):
            written[row].append(token)
    return [None if row in spoilt else ids for row, ids in enumerate(written)]


def stop_ids_of(model: Any) -> frozenset[int]:
    """The tokens at which a model's own generation ends."""
    ids = model.generation_config.eos_token_id
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def _groups(model: Any, prefilled: Prefilled, rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Neighbours in length, as many as fit into `GROUP_BYTES`."""
    cache_bytes = sum(key[0].nbytes + value[0].nbytes for key, value in prefilled.kv)
    token_bytes = 2 * 4 * model.config.vocab_size  # fp32, before and after the softmax
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row[1])):  # stable: items whose choices are single tokens stay in order
        if group and (len(group) + 1) * (cache_bytes + token_bytes * (1 + len(row[1]))) > GROUP_BYTES:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _log_p(model: Any, prefilled: Prefilled, last_ids: Sequence[int], group: list[Row]) -> tuple[Tensor, ...]:
    """Of each row, [1 + tokens run, vocabulary] log-probabilities of the token after each."""
    ids, mask = padded([[last_ids[item], *run] for item, run in group], prefilled.mask.device, side="right")
    logits = continue_logits(model, _repeated(prefilled, [item for item, _ in group]), ids, mask)
    return torch.split(logits.log_softmax(-1), [1 + len(run) for _, run in group])


def _sum(log_p: Tensor, tokens: Sequence[int]) -> Tensor:
    return log_p[range(len(tokens)), list(tokens)].sum()


def _likeliest(logits: Tensor) -> list[int]:
    """The token of the highest logit, which is not a number if any of its row is none."""
    highest, tokens = logits.max(-1)
    found: list[int] = tokens.masked_fill(highest.isnan(), NOT_A_NUMBER).tolist()
    return found


def _repeated(prefilled: Prefilled, items: list[int]) -> Prefilled:
    """The cache of these items, each as often as it is named."""
    if items == list(range(len(prefilled.mask))):
        return prefilled
    rows = torch.tensor(items, device=prefilled.mask.device)
    kv = [(key[rows], value[rows]) for key, value in prefilled.kv]
    return Prefilled(kv, prefilled.mask[rows], prefilled.positions[rows])


def _logits(parts: Anatomy, hidden: Tensor) -> Tensor:
    """[..., vocabulary] fp32 of [..., d_model]."""
    found: Tensor = parts.head(hidden).float()
    return found if parts.softcap is None else parts.softcap * torch.tanh(found / parts.softcap)
