"""What the audited modules add up to: means, quantiles, where the energy of the update lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nullarm.protocols.rank_mechanism.module_names import layer_path
from nullarm.protocols.rank_mechanism.spectra import ModuleAudit
from nullarm.protocols.rank_mechanism.spectral_norm import TOLERANCE

TOP_K = 5
CONCENTRATED, MODERATE = 0.40, 0.25
"""Herfindahl–Hirschman indices from which the energy counts as concentrated, and as moderately so."""


def summarise(modules: Sequence[ModuleAudit], notes: Iterable[str] = ()) -> dict[str, Any]:
    """Summary of an audit as plain JSON values; what is undefined (a ratio to zero, no base weights) is None.

    Energy is ‖ΔW‖_F². `weighted_mean` is weighted by LoRA parameters; `composition` says how the energy is spread over
    transformer layers (modules outside of any are one more, `layer: null`); `gain` lists the largest updates.
    """
    energies = _energies(modules)
    return {
        "n_modules": len(modules),
        "n_layers": len({path for module in modules if (path := layer_path(module.name)) is not None}),
        "total_lora_params": sum(module.params for module in modules),
        "frobenius_norm_scaled": _norm(module.frobenius_norm_scaled for module in modules),
        **_spectral_summary(modules),
        "by_type": _by_type(modules, energies),
        "base": _base_summary(modules),
        "composition": _composition(modules, energies),
        "gain": _gain(modules, energies),
        "notes": list(notes),
    }


def _spectral_summary(modules: Sequence[ModuleAudit]) -> dict[str, Any]:
    ranks = [module.energy_rank_90 for module in modules]
    return {
        **_averages(modules, "stable_rank", lambda module: module.stable_rank),
        **_averages(modules, "effective_rank", lambda module: module.effective_rank),
        **_averages(modules, "utilization", lambda module: module.utilization),
        "energy_rank_90_p50": _quantile(ranks, 0.5),
        "energy_rank_90_p90": _quantile(ranks, 0.9),
    }


def _averages(
    modules: Sequence[ModuleAudit], name: str, statistic: Callable[[ModuleAudit], float | None]
) -> dict[str, float | None]:
    pairs = [(value, module.params) for module in modules if (value := statistic(module)) is not None]
    values, weights = [value for value, _ in pairs], [weight for _, weight in pairs]
    return {
        f"{name}_mean": float(np.mean(values)) if values else None,
        f"{name}_median": _quantile(values, 0.5),
        f"{name}_weighted_mean": float(np.average(values, weights=weights)) if values else None,
    }


def _by_type(modules: Sequence[ModuleAudit], energies: Sequence[float]) -> dict[str, Any]:
    table = {}
    for kind in ("attn", "mlp", "other"):
        members = [module for module in modules if module.module_type == kind]
        if members:
            energy = sum(e for module, e in zip(modules, energies, strict=True) if module.module_type == kind)
            table[kind] = {
                "n_modules": len(members),
                "params": sum(module.params for module in members),
                "energy_share": _share(energy, sum(energies)),
                **_spectral_summary(members),
            }
    return table


def _base_summary(modules: Sequence[ModuleAudit]) -> dict[str, Any] | None:
    """Ratios to the base weights, over the modules that have one; None if none has."""
    known = [module for module in modules if module.base_frobenius_norm is not None]
    ratios = [module.udr for module in known if module.udr is not None]
    if not known:
        return None
    base = _norm(module.base_frobenius_norm or 0.0 for module in known)
    update = _norm(module.frobenius_norm_scaled for module in known)
    return {
        "n_modules": len(known),
        "spectral_norm_tolerance": TOLERANCE,
        "relative_change": _share(update, base),
        "udr_mean": float(np.mean(ratios)) if ratios else None,
        "udr_median": _quantile(ratios, 0.5),
        "udr_p90": _quantile(ratios, 0.9),
        "udr_max": max(ratios, default=None),
        "udr_fraction_above_0_1": sum(u > 0.1 for u in ratios) / len(ratios) if ratios else None,
        "udr_fraction_above_0_3": sum(u > 0.3 for u in ratios) / len(ratios) if ratios else None,
    }


def _composition(modules: Sequence[ModuleAudit], energies: Sequence[float]) -> dict[str, Any]:
    layers = _layers(modules, energies)
    ranked = _largest_first(layers)
    tenth = max(1, len(layers) // 10)
    hhi = sum(layer["share"] ** 2 for layer in layers) if layers[0]["share"] is not None else None
    return {
        "energy_total": _finite(sum(energies)),
        "layers": layers,
        "top_k": _top(ranked[:TOP_K]),
        "top_10_percent": _top(ranked[:tenth]),
        "hhi": hhi,
        "hhi_label": _label(hhi),
    }


def _layers(modules: Sequence[ModuleAudit], energies: Sequence[float]) -> list[dict[str, Any]]:
    total = sum(energies)
    sums: dict[str | None, float] = {}
    index: dict[str | None, int | None] = {}
    for module, energy in zip(modules, energies, strict=True):
        path = layer_path(module.name)
        sums[path] = sums.get(path, 0.0) + energy
        index[path] = module.layer
    return [
        {"layer": index[path], "path": path, "energy": _finite(energy), "share": _share(energy, total)}
        for path, energy in sums.items()
    ]


def _top(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shares = [layer["share"] for layer in layers]
    return {
        "k": len(layers),
        "share": None if None in shares else sum(shares),
        "layers": [layer["path"] for layer in layers],
    }


def _largest_first(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(layers, key=lambda layer: -math.inf if layer["energy"] is None else -layer["energy"])


def _label(hhi: float | None) -> str | None:
    if hhi is None:
        return None
    if hhi >= CONCENTRATED:
        return "concentrated"
    return "moderately concentrated" if hhi >= MODERATE else "distributed"


def _gain(modules: Sequence[ModuleAudit], energies: Sequence[float]) -> dict[str, Any]:
    total = sum(energies)
    ranked = sorted(zip(modules, energies, strict=True), key=lambda pair: -pair[1])[:TOP_K]
    return {
        "top_modules": [{"name": m.name, "energy": _finite(e), "share": _share(e, total)} for m, e in ranked],
        "top_layers": _largest_first(_layers(modules, energies))[:TOP_K],
    }


def _energies(modules: Sequence[ModuleAudit]) -> list[float]:
    # a product, not a power: too large a float gives inf, which is reported as None, instead of an OverflowError
    return [module.frobenius_norm_scaled * module.frobenius_norm_scaled for module in modules]


def _norm(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


def _share(part: float, total: float) -> float | None:
    return part / total if total > 0.0 and math.isfinite(total) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _quantile(values: Sequence[float], quantile: float) -> float | None:
    return float(np.quantile(values, quantile)) if values else None
