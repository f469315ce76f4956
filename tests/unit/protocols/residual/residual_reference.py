"""Every metric straight from its formula, slowly: fp64, whole vocabularies, loops."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

import torch
from torch import Tensor


def logits_of(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, softcap: float | None = None, scale: float = 1.0
) -> Tensor:
    """[N, V] from [N, d]: the state is rounded to the weights' type, then everything is exact."""
    logits = states.to(weight.dtype).double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def entropy(logits: Tensor) -> Tensor:
    logp = logits.double().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p ‖ q): `kl_div` is kl(right, left)."""
    logp, logq = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def js(left: Tensor, right: Tensor) -> Tensor:
    mixture = ((left.double().softmax(-1) + right.double().softmax(-1)) / 2).log()
    return (kl(left, mixture) + kl(right, mixture)) / 2


def loss(logits: Tensor, next_ids: Sequence[int]) -> list[float | None]:
    logp = logits.double().log_softmax(-1)
    return [None if token < 0 else -float(row[token]) for row, token in zip(logp, next_ids, strict=True)]


def rank(logits: Tensor, next_ids: Sequence[int]) -> list[int | None]:
    """1 + how many tokens have a larger logit."""
    return [
        None if token < 0 else 1 + sum(value > row[token] for value in row)
        for row, token in zip(logits.tolist(), next_ids, strict=True)
    ]


def top(logits: Tensor, k: int) -> list[list[int]]:
    """Tokens of the k largest values of each row, largest first, of equal ones the first."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits.tolist()]


def overlap(left: Tensor, right: Tensor, k: int) -> list[float]:
    return [len(set(a) & set(b)) / k for a, b in zip(top(left, k), top(right, k), strict=True)]


def norm(h: Tensor) -> float:
    return float(sum(x * x for x in h.double().tolist()) ** 0.5)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double()) / (norm(a) * norm(b))


def norm_diff(left: Tensor, right: Tensor) -> float:
    return norm(right.double() - left.double())


def relative_diff(left: Tensor, right: Tensor) -> float:
    return norm_diff(left, right) / norm(left)


def factorial(bb: Tensor, bs: Tensor, sb: Tensor, ss: Tensor) -> dict[str, float]:
    """Effects and shares of four vectors; first letter the embedding, second the body."""
    bb, bs, sb, ss = (x.double() for x in (bb, bs, sb, ss))
    effects = {
        "embedding": norm(((sb - bb) + (ss - bs)) / 2),
        "body": norm(((bs - bb) + (ss - sb)) / 2),
        "interaction": norm(((ss - sb) - (bs - bb)) / 2),
    }
    mean = (bb + bs + sb + ss) / 4
    total = sum(norm(x - mean) ** 2 for x in (bb, bs, sb, ss))
    return {
        "embedding_effect": effects["embedding"],
        "body_effect": effects["body"],
        "interaction": effects["interaction"],
        **{f"{name}_share": effect**2 / total for name, effect in effects.items()},
    }


def linear_cka(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def effective_rank(x: Tensor) -> float:
    singular = torch.linalg.svdvals(x.double() - x.double().mean(0)).tolist()
    shares = [s / sum(singular) for s in singular]
    return exp(-sum(p * log(p) for p in shares if p > 0))


def mean_difference(left: Tensor, right: Tensor) -> Tensor:
    return (right.double() - left.double()).mean(0)


def direction_consistency(left: Tensor, right: Tensor, prompts: Sequence[int]) -> float:
    everything = mean_difference(left, right)
    cosines = []
    for prompt in sorted(set(prompts)):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        cosines.append(cosine(mean_difference(left[rows], right[rows]), everything))
    return sum(cosines) / len(cosines)
