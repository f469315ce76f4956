"""Temporary: replaced."""
from __future__ import annotations
from dataclasses import dataclass
import numpy as np

def trajectory(values, rng, resamples):
    n = len(values)
    if n < 2: return values.mean(0), None, None
    w = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    draws = w @ values
    return values.mean(0), *np.quantile(draws, [0.025, 0.975], axis=0)

@dataclass(frozen=True)
class Layered:
    metrics: dict; directions: dict

def bootstrap_layers(streams, prompts, comparisons, rng, resamples):
    d = {c.name: (streams[c.right].float() - streams[c.left].float()).mean(0) for c in comparisons if streams[c.right].shape == streams[c.left].shape}
    return Layered({("pair", n): {"mean_difference": (float(v.norm()), None, None)} for n, v in d.items()}, d)
