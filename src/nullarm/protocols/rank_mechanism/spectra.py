"""An audited adapter as data: the spectrum of every module's update, their summary, and ranks they suggest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from nullarm.errors import FormatError
from nullarm.protocols.rank_mechanism.ranks import ModuleShape


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
