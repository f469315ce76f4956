"""Audit a LoRA adapter: the singular spectrum of every module's update, and what it adds up to.

The singular values of BA are those of R_B R_Aᵀ, where B = Q_B R_B and Aᵀ = Q_A R_A: an r × r problem, and BA is never
formed. (The Gram matrices BᵀB and AAᵀ would do too, but square the condition: everything below 1e-8 σ₁ is lost.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullarm.errors import AdapterError, FormatError
from nullarm.protocols.rank_mechanism.adapter import Adapter, LoraModule, open_adapter
from nullarm.protocols.rank_mechanism.base_norms import BaseNorms, base_norms, default_cache
from nullarm.protocols.rank_mechanism.module_names import and_more, layer_index, module_type
from nullarm.protocols.rank_mechanism.ranks import ModuleShape
from nullarm.protocols.rank_mechanism.spectrum import effective_rank, energy_rank, frobenius_norm, stable_rank
from nullarm.protocols.rank_mechanism.suggest import suggestion
from nullarm.protocols.rank_mechanism.summary import summarise

_BATCH_ELEMENTS = 4 * 2**20
"""Elements of A and B worked on at once: 32 MiB in float64, and as much again inside the QR."""


@dataclass(frozen=True)
class ModuleAudit:
    """What one module's update ΔW = scale · BA looks like. Undefined numbers are None, never NaN.

    Attributes:
        name: The module in the base model.
        r: Rank of the factors.
        alpha: lora_alpha.
        scale: alpha / r, or alpha / √r under rsLoRA; already in the singular values and norms.
        dora: The spectrum is that of the direction update, before normalisation and magnitude.
        module_type: `attn`, `mlp` or `other`.
        layer: Number of the transformer layer, None outside of any.
        a_key: Key of A in the adapter file.
        b_key: Key of B in the adapter file.
        shapes: `{"A": [r, in], "B": [out, r]}`.
        params: Parameters of A and B.
        singular_values: σ of ΔW, descending, min(r, in, out) of them.
        stable_rank: Σσ² / σ₁²; None for a zero update.
        utilization: stable_rank / r.
        effective_rank: exp of the entropy of σ/Σσ; None for a zero update.
        energy_rank_90: Least k that holds 90 % of Σσ²; 0 for a zero update.
        energy_rank_95: The same at 95 %.
        energy_rank_99: The same at 99 %.
        spectral_norm_scaled: ‖ΔW‖₂.
        frobenius_norm_scaled: ‖ΔW‖_F.
        base_spectral_norm: ‖W‖₂ of the base weight, None without base.
        base_frobenius_norm: ‖W‖_F of the base weight, None without base.
        udr: Update dominance ratio ‖ΔW‖₂ / ‖W‖₂.
        udr_f: Relative change ‖ΔW‖_F / ‖W‖_F.
        sdi: Spectral drift index log10(udr).
    """

    name: str
    r: int
    alpha: float
    scale: float
    dora: bool
    module_type: str
    layer: int | None
    a_key: str
    b_key: str
    shapes: dict[str, list[int]]
    params: int
    singular_values: list[float]
    stable_rank: float | None
    utilization: float | None
    effective_rank: float | None
    energy_rank_90: int
    energy_rank_95: int
    energy_rank_99: int
    spectral_norm_scaled: float
    frobenius_norm_scaled: float
    base_spectral_norm: float | None = None
    base_frobenius_norm: float | None = None
    udr: float | None = None
    udr_f: float | None = None
    sdi: float | None = None

    @property
    def shape(self) -> ModuleShape:
        """The module's `ModuleShape`, as allocation wants it."""
        return ModuleShape(self.name, in_features=self.shapes["A"][1], out_features=self.shapes["B"][0])


@dataclass(frozen=True)
class Audit:
    """An audited adapter: its modules in layer order, their summary, and ranks the audit would suggest."""

    modules: tuple[ModuleAudit, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    suggestion: dict[str, Any] = field(default_factory=dict)

    @property
    def spectra(self) -> dict[str, list[float]]:
        """{module: singular values}."""
        return {module.name: module.singular_values for module in self.modules}

    @property
    def shapes(self) -> tuple[ModuleShape, ...]:
        """Shape of every module."""
        return tuple(module.shape for module in self.modules)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank map the adapter was trained with."""
        return {module.name: module.r for module in self.modules}

    def to_json(self) -> dict[str, Any]:
        """The audit as plain JSON values: `{"modules": [...], "summary": {...}, "suggestion": {...}}`."""
        return {
            "modules": [asdict(module) for module in self.modules],
            "summary": self.summary,
            "suggestion": self.suggestion,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            FormatError: If `data` is not an audit.
        """
        known = {f.name for f in fields(ModuleAudit)}
        try:
            modules = tuple(ModuleAudit(**module) for module in data["modules"])
            return cls(modules, dict(data["summary"]), dict(data["suggestion"]))
        except (KeyError, TypeError, ValueError) as cause:
            raise FormatError(
                f"not an audit as this version writes it: {cause}",
                valid=f"modules (each with {', '.join(sorted(known))}), summary, suggestion",
                next_command="nullarm audit DIR --json",
            ) from cause


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
    with _one_thread():
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for factorisations this small: more gain nothing, and are 10 to 25 times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
