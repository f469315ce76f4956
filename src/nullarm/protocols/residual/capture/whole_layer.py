"""Metrics of a whole layer over sampled positions, with intervals from resampled prompts.

A resample is a weight for every prompt, the number of times it was drawn, and every metric is a function of weights:
CKA of Gram matrices, the mean differences of the Gram matrix of the prompts' sums, the effective rank of the squared
scores on the principal directions. So vectors are multiplied once per layer, and all resamples come from small
products. At d = 3584, M = 1024 that is one Gram matrix and one eigendecomposition per run and layer (half a second on
a core), where an eigendecomposition per resample would be 200 times as many.

Shapes: M sampled rows, d width, G prompts, B weightings, the first of which is the sample itself. All in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.protocols.residual.runs import Comparison

Floats = npt.NDArray[np.float64]

Estimate = tuple[float | None, float | None, float | None]
"""Value and ends of its 95 % interval; None where they are not defined."""

TAILS = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

RANGES: Mapping[str, tuple[float, float]] = {
    "cka": (0, 1),
    "effective_rank": (1, inf),
    "mean_difference": (0, inf),
    "direction_consistency": (-1, 1),
}
"""What each metric can be."""


@dataclass(frozen=True, eq=False)
class LayerNumbers:
    """The whole-layer metrics of one layer.

    Attributes:
        metrics: (kind, record) to metric to estimate, see `tables.LAYERS`.
        directions: [d] mean of right − left of each comparison whose runs have one width, fp32.
    """

    metrics: Mapping[tuple[str, str], Mapping[str, Estimate]]
    directions: Mapping[str, Tensor]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, 1905.00414, section 3).

    Args:
        x: [M, d].
        y: [M, d'], any width.
    """
    x, y = _centred(x), _centred(y)
    return float((_alignment(x, y) / (_alignment(x, x) * _alignment(y, y)).sqrt()).clamp(0, 1))


def effective_rank(x: Tensor) -> float:
    """Exponential of the entropy of the centred rows' singular values (Roy & Vetterli 2007).

    Args:
        x: [M, d].
    """
    x = _centred(x)
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T
    return float(_rank_of(torch.linalg.eigvalsh(gram)))


def mean_difference(left: Tensor, right: Tensor) -> Tensor:
    """[d] mean over rows of right − left, fp32.

    Raises:
        ModelError: The widths differ.
    """
    return _difference(left, right).mean(0).float()


def direction_consistency(left: Tensor, right: Tensor, prompts: npt.ArrayLike) -> float:
    """Mean over prompts of the cosine of a prompt's mean difference with that of all rows; NaN where the latter is 0.

    Args:
        left: [M, d].
        right: [M, d].
        prompts: [M] prompt of each row.

    Raises:
        ModelError: The widths differ.
    """
    _, code = np.unique(np.asarray(prompts), return_inverse=True)
    once = torch.ones(1, int(code.max()) + 1, dtype=torch.float64, device=left.device)
    sums, _ = _prompt_sums(_difference(left, right), code)
    return float(_mean_cosine(sums @ sums.T, once))


def bootstrap_layers(
    residuals: Mapping[str, Tensor],
    prompts: npt.ArrayLike,
    comparisons: Sequence[Comparison],
    rng: np.random.Generator,
    resamples: int,
) -> LayerNumbers:
    """All whole-layer metrics of one layer, with intervals over prompts resampled with replacement.

    A resample repeats rows, and repeated rows by themselves raise CKA and lower the effective rank. So draws are moved
    to have the estimate as their mean before percentiles are taken; ends stay in the metric's range. The effective
    rank follows weights through the variances along the sample's principal directions, which is how eigenvalues move
    to first order.

    Args:
        residuals: Per run [M, d], on one device.
        prompts: [M] prompt of each row.
        comparisons: Pairs of runs; where widths differ, only `cka` is there.
        rng: Given in the same state, it draws the same prompts for every layer.
        resamples: Draws.
    """
    _, code = np.unique(np.asarray(prompts), return_inverse=True)
    device = next(iter(residuals.values())).device
    counts = torch.from_numpy(_counts(int(code.max()) + 1, rng, resamples)).to(device)
    weights = counts[:, torch.from_numpy(code).to(device)]
    weights /= weights.sum(1, keepdim=True)
    rows = {name: _centred(x) for name, x in residuals.items()}
    grams = {name: x @ x.T for name, x in rows.items()}
    spreads = {name: _covariance(gram, gram, weights) for name, gram in grams.items()}
    metrics: dict[tuple[str, str], dict[str, Estimate]] = {
        ("run", name): {"effective_rank": _estimate("effective_rank", _rank_of(_variances(x, grams[name], weights)))}
        for name, x in rows.items()
    }
    directions = {}
    for pair in comparisons:
        left, right = pair.left, pair.right
        common = _covariance(grams[left], grams[right], weights)
        found = {"cka": common / (spreads[left] * spreads[right]).sqrt()}
        if residuals[left].shape[1] == residuals[right].shape[1]:
            found |= _mean_differences(_difference(residuals[left], residuals[right]), code, counts)
            directions[pair.name] = mean_difference(residuals[left], residuals[right])
        metrics["pair", pair.name] = {name: _estimate(name, values) for name, values in found.items()}
    return LayerNumbers(metrics, directions)


def trajectory(
    values: npt.ArrayLike, rng: np.random.Generator, resamples: int
) -> tuple[Floats, Floats | None, Floats | None]:
    """Mean over prompts per layer, with ends of 95 % percentile intervals over prompts resampled with replacement.

    Args:
        values: [prompts, layers].
        rng: Source of the draws; in the same state it draws the same prompts.
        resamples: Draws.

    Returns:
        Mean, low and high end [layers]; the ends are None where there is only one prompt.
    """
    table = np.asarray(values, np.float64)
    means: Floats = _counts(len(table), rng, resamples) @ table / len(table)
    if len(table) == 1:
        return means[0], None, None
    low, high = np.percentile(means[1:], TAILS, axis=0)
    return means[0], low, high


def _counts(prompts: int, rng: np.random.Generator, resamples: int) -> Floats:
    """[1 + resamples, G] how often each prompt is there: once in the sample itself. One prompt has no resamples."""
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples if prompts > 1 else 0)
    return np.concatenate([np.ones((1, prompts)), drawn])


def _estimate(name: str, values: Tensor) -> Estimate:
    """Value and interval from [B] values, the first of which is the estimate."""
    value, draws = float(values[0]), values[1:].cpu().numpy()
    if not np.isfinite(value):
        return None, None, None
    low, high = RANGES[name]
    value = min(max(value, low), high)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return value, None, None
    ends = np.clip(np.percentile(draws - draws.mean() + value, TAILS), low, high)
    return value, float(ends[0]), float(ends[1])


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _alignment(x: Tensor, y: Tensor) -> Tensor:
    """‖yᵀx‖²_F of centred rows, from whichever Gram matrices are smaller."""
    if min(x.shape[1], y.shape[1]) < len(x):
        return (y.T @ x).square().sum()
    return ((x @ x.T) * (y @ y.T)).sum()


def _covariance(k: Tensor, l: Tensor, weights: Tensor) -> Tensor:  # noqa: E741
    """[B] Σᵢⱼ wᵢ wⱼ k̃ᵢⱼ l̃ᵢⱼ, of Gram matrices [M, M] that are centred by each weighting [B, M] of sum 1."""
    kw, lw = weights @ k, weights @ l
    raw = ((weights @ (k * l)) * weights).sum(1)
    return raw - 2 * (weights * kw * lw).sum(1) + (weights * kw).sum(1) * (weights * lw).sum(1)


def _variances(x: Tensor, gram: Tensor, weights: Tensor) -> Tensor:
    """[B, r] weighted variances of centred rows along their principal directions."""
    if x.shape[1] < len(x):
        scores = x @ torch.linalg.eigh(x.T @ x).eigenvectors
    else:
        values, vectors = torch.linalg.eigh(gram)
        scores = vectors * values.clamp_min(0).sqrt()
    variances: Tensor = weights @ scores.square() - (weights @ scores).square()
    return variances


def _rank_of(variances: Tensor) -> Tensor:
    """Effective rank [...] from squared singular values [..., r], up to a factor."""
    singular = variances.clamp_min(0).sqrt()
    shares = singular / singular.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy.exp()


def _difference(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[1] != right.shape[1]:
        raise ModelError(
            "mean_difference, direction_consistency: the residuals have no common space",
            value=f"widths {left.shape[1]} and {right.shape[1]}",
            valid="models of one width; cka compares any",
        )
    return right.double() - left.double()


def _prompt_sums(difference: Tensor, code: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
    """[G, d] sum and [G] number of each prompt's rows; `code` [M] counts prompts from 0."""
    index = torch.from_numpy(code).to(difference.device)
    sizes = torch.bincount(index).double()
    return difference.new_zeros(len(sizes), difference.shape[1]).index_add_(0, index, difference), sizes


def _mean_differences(difference: Tensor, code: npt.NDArray[Any], counts: Tensor) -> dict[str, Tensor]:
    """[B] norm of the mean difference, and consistency of the prompts' own, by counts [B, G] of prompts."""
    sums, sizes = _prompt_sums(difference, code)
    gram = sums @ sums.T
    norm = _squared(gram, counts).sqrt() / (counts @ sizes)
    return {"mean_difference": norm, "direction_consistency": _mean_cosine(gram, counts)}


def _squared(gram: Tensor, counts: Tensor) -> Tensor:
    """[B] squared norm of the sum of vectors taken as often as `counts` [B, G] says, from their Gram matrix [G, G]."""
    return ((counts @ gram) * counts).sum(1).clamp_min(0)


def _mean_cosine(gram: Tensor, counts: Tensor) -> Tensor:
    """[B] mean cosine of vectors with their sum, each counted as often as it is there; of a zero vector 0."""
    norms = gram.diagonal().sqrt()
    projections = (counts @ gram) / _squared(gram, counts).sqrt()[:, None]
    cosines = torch.where(norms > 0, projections / norms, projections * 0)
    return (counts * cosines).sum(1) / counts.sum(1)
