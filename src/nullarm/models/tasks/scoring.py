"""Scores of items: likelihood of choices, exact match of generated text, classes.

Batches are made of neighbours in length. Rows are padded on the right for scoring and on the left for generation; the
order of the results is the order of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nullarm.models.tasks.base import Item, ItemResult
from nullarm.models.tasks.encoding import NO_LIMITS, Limits, encode_pair, encode_prompt

Completion = Callable[[str], str]


def score_choices(
    model: Any, tokenizer: Any, items: Sequence[Item], *, completion: Completion, batch_size: int
) -> list[ItemResult]:
    """Pick the choice of highest likelihood (summed over its tokens, nats); ties go to the first.

    Args:
        model: Causal LM in evaluation mode.
        tokenizer: Its tokeniser.
        items: Items with choices, the answer among them.
        completion: Turns a choice into the text that follows the prompt.
        batch_size: Rows, each one item with one choice, in a forward pass.
    """
    rows = [(k, c) for k, item in enumerate(items) for c in item.choices]
    pairs = [encode_pair(tokenizer, items[k].prompt, completion(c))[:2] for k, c in rows]
    scored: list[dict[str, tuple[float, int]]] = [{} for _ in items]
    for (k, choice), pair, value in zip(rows, pairs, log_likelihoods(model, pairs, batch_size), strict=True):
        scored[k][choice] = (value, len(pair[1]))
    return [_chosen(item, by_choice) for item, by_choice in zip(items, scored, strict=True)]


def score_generation(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    completion: Completion,
    extract: Callable[[str], str | None],
    max_new_tokens: int,
    batch_size: int,
    limits: Limits = NO_LIMITS,
) -> list[ItemResult]:
    """Generate greedily and compare what `extract` finds in the text with what it finds in the answer.

    The loss is that of the reference completion, cut to `limits`.
    """
    pairs = [encode_pair(tokenizer, i.prompt, completion(i.answer), limits)[:2] for i in items]
    likelihoods = log_likelihoods(model, pairs, batch_size)
    prompts = [encode_prompt(tokenizer, i.prompt, limits) for i in items]
    texts = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    results = []
    for item, pair, value, text in zip(items, pairs, likelihoods, texts, strict=True):
        found, target = extract(text), extract(item.answer)
        correct = found is not None and found == target
        prediction = text.strip() if found is None else found
        loss = -value / len(pair[1])
        results.append(ItemResult(item.id, item.cluster, correct, loss, float(correct), prediction, target or ""))
    return results


def log_likelihoods(model: Any, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int) -> list[float]:
    """Log-likelihood of each second sequence given the first, nats, summed over its tokens (fp32)."""
    values = [0.0] * len(pairs)
    for batch in _by_length([len(a) + len(b) for a, b in pairs], batch_size):
        rows = [pairs[i][0] + pairs[i][1] for i in batch]
        ids, mask = _padded(rows, model.device, side="right")
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        position = torch.arange(1, ids.shape[1], device=ids.device)
        first = torch.tensor([len(pairs[i][0]) for i in batch], device=ids.device)
        wanted = (position >= first[:, None]) & mask[:, 1:].bool()
        for i, total in zip(batch, (losses * wanted).sum(1).tolist(), strict=True):
            values[i] = -total
    return values


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """Greedy continuations, without special tokens, in the order of the prompts (token ids)."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = [""] * len(prompts)
    for batch in _by_length([len(p) for p in prompts], batch_size):
        ids, mask = _padded([prompts[i] for i in batch], model.device, side="left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        full = model.generate(input_ids=ids, attention_mask=mask, position_ids=positions, generation_config=greedy)
        for i, text in zip(
            batch, tokenizer.batch_decode(full[:, ids.shape[1] :], skip_special_tokens=True), strict=True
        ):
            texts[i] = text
    return texts


def classify(model: Any, rows: Sequence[list[int]], batch_size: int) -> torch.Tensor:
    """Logits of a sequence classifier, `[item, label]`, fp32, on the CPU, in the order of the rows (token ids)."""
    logits = torch.empty(len(rows), model.config.num_labels)
    for batch in _by_length([len(r) for r in rows], batch_size):
        ids, mask = _padded([rows[i] for i in batch], model.device, side="right", pad=model.config.pad_token_id)
        logits[batch] = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
    return logits


def _chosen(item: Item, by_choice: dict[str, tuple[float, int]]) -> ItemResult:
    best = max(by_choice, key=lambda c: by_choice[c][0])
    value, tokens = by_choice[item.answer]
    correct = best == item.answer
    return ItemResult(item.id, item.cluster, correct, -value / tokens, float(correct), best, item.answer)


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(rows: Sequence[list[int]], device: Any, *, side: str, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, `[row, position]`; with a mask, the padding id matters to a classifier's pooling only."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, span] = torch.tensor(row)
        mask[i, span] = 1
    return ids.to(device), mask.to(device)
