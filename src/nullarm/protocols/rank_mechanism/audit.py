"""Audit a LoRA adapter: the singular spectrum of every module's update, and what it adds up to.

The singular values of BA are those of R_B R_Aᵀ, where B = Q_B R_B and Aᵀ = Q_A R_A: an r × r problem, and BA is never
formed. (The Gram matrices BᵀB and AAᵀ would do too, but square the condition: everything below 1e-8 σ₁ is lost.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullarm.errors import AdapterError
from nullarm.models.threads import one_thread
from nullarm.protocols.rank_mechanism.adapter import Adapter, LoraModule, open_adapter
from nullarm.protocols.rank_mechanism.base_norms import BaseNorms, base_norms, default_cache
from nullarm.protocols.rank_mechanism.module_names import and_more, layer_index, module_type
from nullarm.protocols.rank_mechanism.spectra import Audit, ModuleAudit
from nullarm.protocols.rank_mechanism.suggest import suggestion
from nullarm.protocols.rank_mechanism.summary import summarise
from nullarm.stats.spectrum import effective_rank, energy_rank, frobenius_norm, stable_rank

_BATCH_ELEMENTS = 4 * 2**20
"""Elements of A and B worked on at once: 32 MiB in float64, and as much again inside the QR."""


def audit_adapter(
    directory: Path | str,
    *,
    base: Path | str | None = None,
    allow_pickle: bool = False,
    cache: Path | None = None,
) -> Audit:
    """Audit a PEFT LoRA adapter.

    Args:
        directory: `adapter_config.json` and `adapter_model.safetensors`.
        base: Checkpoint directory of the base model, for the ratios to the base weights.
        allow_pickle: Also read `adapter_model.bin` (with `weights_only=True`).
        cache: Where norms of base weights are kept between runs; by default `base_norms.default_cache()`.

    Returns:
        Spectra, summary, and the per-layer suggestion of the default policy (`suggest.suggestion` makes others).

    Raises:
        AdapterError: If the adapter is missing, incomplete, contradictory or not finite.
        ModelError: If `base` holds no readable checkpoint.
    """
    adapter = open_adapter(directory, allow_pickle=allow_pickle)
    norms: dict[str, BaseNorms] = {}
    notes = list(adapter.notes)
    if base is not None:
        norms, missing = base_norms(
            Path(base),
            adapter.modules,
            fan_in_fan_out=adapter.settings.fan_in_fan_out,
            cache=default_cache() if cache is None else cache,
        )
        for why in sorted(set(missing.values())):
            names = [name for name, reason in missing.items() if reason == why]
            notes.append(f"no ratio to base weights, {why}: {and_more(names)}")
    with one_thread():
        spectra = dict(_spectra(adapter))
    modules = tuple(_module_audit(module, spectra[module.name], norms.get(module.name)) for module in adapter.modules)
    audit = Audit(modules, summarise(modules, notes))
    return replace(audit, suggestion=suggestion(audit, "per-layer"))


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Singular values of BA, descending, in float64, without forming BA.

    Args:
        a: `[batch, r, in]`.
        b: `[batch, out, r]`.

    Returns:
        `[batch, min(r, in, out)]`.
    """
    # Aᵀ of a row-major A is column-major already, as LAPACK wants it: transpose after the conversion.
    r_a = torch.linalg.qr(a.double().mT, mode="r").R
    r_b = torch.linalg.qr(b.double(), mode="r").R
    values: Tensor = torch.linalg.svdvals(r_b @ r_a.mT)
    return values


def _spectra(adapter: Adapter) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(module, σ of scale · BA) for every module."""
    for batch, a, b in adapter.batches(_BATCH_ELEMENTS):
        _check_finite(adapter.directory, batch, a, b)
        values = singular_values(a, b)
        for module, sigma in zip(batch, values.numpy(), strict=True):
            yield module.name, sigma * abs(module.scale)


def _check_finite(directory: Path, batch: list[LoraModule], a: Tensor, b: Tensor) -> None:
    # A sum is finite only if all its terms are; it costs one pass and no copy. Overflow of finite terms is sorted out
    # by the exact count below.
    if math.isfinite(float(a.sum(dtype=torch.float64)) + float(b.sum(dtype=torch.float64))):
        return
    for index, module in enumerate(batch):
        for key, factor in ((module.a_key, a[index]), (module.b_key, b[index])):
            bad = int((~torch.isfinite(factor)).sum())
            if bad:
                raise AdapterError(
                    f"adapter {directory}: {key} of module {module.name} holds values that are not finite",
                    value=f"{bad} of {factor.numel()}",
                    valid="finite weights",
                    next_command="train again with a lower learning rate, or audit an earlier checkpoint",
                )


def _module_audit(module: LoraModule, sigma: NDArray[np.float64], base: BaseNorms | None) -> ModuleAudit:
    spectral, frobenius, stable = float(sigma[0]), frobenius_norm(sigma), stable_rank(sigma)
    udr = _ratio(spectral, base.spectral if base else None)
    return ModuleAudit(
        name=module.name,
        r=module.r,
        alpha=module.alpha,
        scale=module.scale,
        dora=module.dora,
        module_type=module_type(module.name),
        layer=layer_index(module.name),
        a_key=module.a_key,
        b_key=module.b_key,
        shapes={"A": [module.r, module.in_features], "B": [module.out_features, module.r]},
        params=module.params,
        singular_values=sigma.tolist(),
        stable_rank=stable,
        utilization=None if stable is None else stable / module.r,
        effective_rank=effective_rank(sigma),
        energy_rank_90=energy_rank(sigma, 0.90),
        energy_rank_95=energy_rank(sigma, 0.95),
        energy_rank_99=energy_rank(sigma, 0.99),
        spectral_norm_scaled=spectral,
        frobenius_norm_scaled=frobenius,
        base_spectral_norm=base.spectral if base else None,
        base_frobenius_norm=base.frobenius if base else None,
        udr=udr,
        udr_f=_ratio(frobenius, base.frobenius if base else None),
        sdi=math.log10(udr) if udr else None,
    )


def _ratio(update: float, base: float | None) -> float | None:
    return update / base if base else None
