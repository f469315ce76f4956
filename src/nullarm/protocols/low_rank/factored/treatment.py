"""Whether a treatment treats: two arms with equal hashes are one model, whatever their names say."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


def treatment_hash(model: Any, probe_ids: Tensor) -> dict[str, str]:
    """What names the effective model.

    Args:
        model: A causal LM in evaluation mode, as it runs: compressed, gauged or plain.
        probe_ids: Token ids, `[batch, position]`.

    Returns:
        `weights`: `weights_hash`, which alone decides whether two arms are one. `logits`: SHA-256 of the fp32 logits on
        the probe, which are the same only on one kind of device with one number of threads.
    """
    with torch.no_grad():
        output = model(input_ids=probe_ids.to(model.device), use_cache=False).logits.float()
    logits = hashlib.sha256()
    _update(logits, "logits", output)
    return {"weights": weights_hash(model), "logits": logits.hexdigest()}


def weights_hash(model: Any) -> str:
    """SHA-256 of all parameters and buffers in the order of their names, with name, dtype and shape.

    A factored matrix is another treatment than its product.
    """
    weights = hashlib.sha256()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        _update(weights, name, tensor)
    return weights.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
