"""Temporary: replaced."""
from __future__ import annotations
import torch
from torch import Tensor

def run_metrics(h: Tensor) -> dict[str, Tensor]:
    x = h.float()
    norm = torch.linalg.vector_norm(x, dim=-1)
    return {"norm": norm, "norm_delta": norm[1:] - norm[:-1], "cosine_prev": _cos(x[1:], x[:-1])}

def _cos(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1)

def norm_diff(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(b.float() - a.float(), dim=-1)

def pair_metrics(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    d = norm_diff(a, b)
    return {"cosine": _cos(a.float(), b.float()), "norm_diff": d, "relative_diff": d / torch.linalg.vector_norm(a.float(), dim=-1)}

def factorial(bb: Tensor, bs: Tensor, sb: Tensor, ss: Tensor) -> dict[str, Tensor]:
    bb, bs, sb, ss = (t.float() for t in (bb, bs, sb, ss))
    e = torch.linalg.vector_norm((sb - bb + ss - bs) / 2, dim=-1)
    d = torch.linalg.vector_norm((bs - bb + ss - sb) / 2, dim=-1)
    i = torch.linalg.vector_norm((ss - sb - bs + bb) / 2, dim=-1)
    t = e**2 + d**2 + i**2
    return {"embedding_effect": e, "body_effect": d, "interaction": i, "embedding_share": e**2 / t, "body_share": d**2 / t, "interaction_share": i**2 / t}
