from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_files import Q0, Q1, UP0, factors, named_tensors, peft_adapter, two_modules, write_adapter

from nullarm.errors import AdapterError, FormatError
from nullarm.protocols.rank_mechanism.audit import audit_adapter, singular_values
from nullarm.protocols.rank_mechanism.spectra import Audit

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "rslora_patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"q_proj": 3}},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_dense_svd_of_pefts_own_update(tmp_path: Path, variant: str) -> None:
    updates = peft_adapter(tmp_path, **VARIANTS[variant])
    audit = audit_adapter(tmp_path)
    assert {module.name for module in audit.modules} == updates.keys()
    for module in audit.modules:
        dense = torch.linalg.svdvals(updates[module.name]).numpy()
        sigma = np.array(module.singular_values)
        assert len(sigma) == module.r
        # random factors of rank ≤ 7 have condition numbers of tens, so each value has its own relative accuracy
        np.testing.assert_allclose(sigma, dense[: module.r], rtol=1e-10, atol=0)
        np.testing.assert_allclose(dense[module.r :], 0, atol=1e-10 * sigma[0])
        assert module.spectral_norm_scaled == pytest.approx(dense[0], rel=1e-10)
        assert module.frobenius_norm_scaled == pytest.approx(np.linalg.norm(updates[module.name]), rel=1e-10)
        assert module.stable_rank == pytest.approx((dense**2).sum() / dense[0] ** 2, rel=1e-10)
        assert module.utilization == pytest.approx((dense**2).sum() / dense[0] ** 2 / module.r, rel=1e-10)
        assert module.dora == (variant == "dora")


def test_the_check_against_the_dense_svd_can_fail(tmp_path: Path) -> None:
    updates = peft_adapter(tmp_path, lora_alpha=8)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    module = audit_adapter(tmp_path).modules[0]
    dense = torch.linalg.svdvals(updates[module.name])[: module.r].numpy()
    assert np.abs(np.array(module.singular_values) / dense - 1).min() > 0.1


def test_conv1d_weights_have_the_same_spectrum_either_way_round(tmp_path: Path) -> None:
    pairs = {Q0: factors()}
    plain = audit_adapter(write_adapter(tmp_path / "a", named_tensors(pairs))).modules[0]
    turned = audit_adapter(write_adapter(tmp_path / "b", named_tensors(pairs), fan_in_fan_out=True)).modules[0]
    assert plain == turned


def test_small_singular_values_survive_where_gram_matrices_lose_them() -> None:
    generator = torch.Generator().manual_seed(0)

    def orthonormal(rows: int) -> torch.Tensor:
        q: torch.Tensor = torch.linalg.qr(torch.randn(rows, 6, generator=generator, dtype=torch.float64)).Q
        return q

    exact = torch.logspace(0, -10, 6, dtype=torch.float64)
    mix = orthonormal(6)
    a, b = (orthonormal(40) @ mix.mT).mT, orthonormal(50) * exact @ mix.mT
    assert torch.allclose(singular_values(a[None], b[None])[0], exact, rtol=1e-4, atol=0)
    gram = torch.linalg.eigvals(a @ a.mT @ (b.mT @ b)).real.clamp(min=0).sqrt().sort(descending=True).values
    assert (gram / exact - 1).abs().max() > 0.5


def test_a_rank_above_the_shape_gives_as_many_values_as_the_shape(tmp_path: Path) -> None:
    a, b = factors(r=4, n_in=12, n_out=3)
    module = audit_adapter(write_adapter(tmp_path, named_tensors({Q0: (a, b)}))).modules[0]
    assert module.r == 4
    dense = torch.linalg.svdvals(2.0 * b.double() @ a.double())
    np.testing.assert_allclose(module.singular_values, dense.numpy(), rtol=1e-12)


def test_a_negative_scale_keeps_singular_values_positive(tmp_path: Path) -> None:
    module = audit_adapter(two_modules(tmp_path, lora_alpha=-8)).modules[0]
    assert module.scale == -2.0
    assert min(module.singular_values) > 0


def test_half_precision_factors_are_audited_in_double(tmp_path: Path) -> None:
    pair = tuple(t.bfloat16() for t in factors())
    module = audit_adapter(write_adapter(tmp_path, named_tensors({Q0: (pair[0], pair[1])}))).modules[0]
    dense = torch.linalg.svdvals(2.0 * pair[1].double() @ pair[0].double())[:4]
    np.testing.assert_allclose(module.singular_values, dense.numpy(), rtol=1e-12)


def test_an_untrained_adapter_is_audited_without_nan(tmp_path: Path) -> None:
    a, b = factors()
    audit = audit_adapter(write_adapter(tmp_path, named_tensors({Q0: (a, torch.zeros_like(b))})))
    (module,) = audit.modules
    assert (module.stable_rank, module.utilization, module.effective_rank) == (None, None, None)
    assert (module.energy_rank_90, module.energy_rank_99, module.frobenius_norm_scaled) == (0, 0, 0.0)
    assert audit.summary["stable_rank_mean"] is None
    assert audit.summary["composition"]["hhi"] is None
    assert audit.suggestion["rank_pattern"] == {Q0: 1}
    json.dumps(audit.to_json(), allow_nan=False)


def test_enormous_updates_are_reported_without_infinities(tmp_path: Path) -> None:
    a, b = (t.double() * 1e90 for t in factors())
    audit = audit_adapter(write_adapter(tmp_path, named_tensors({Q0: (a, b)})))
    assert audit.modules[0].stable_rank is not None
    assert math.isfinite(audit.modules[0].frobenius_norm_scaled)
    assert audit.summary["composition"]["energy_total"] is None
    json.dumps(audit.to_json(), allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["A", "B"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, part: str) -> None:
    a, b = factors(seed=1)
    (a if part == "A" else b)[2, 1] = value
    with pytest.raises(AdapterError) as refused:
        audit_adapter(write_adapter(tmp_path, named_tensors({Q0: factors(), Q1: (a, b)})))
    assert f"{Q1}.lora_{part}.weight" in str(refused.value)
    assert f"1 of {48 if part == 'A' else 40}" in str(refused.value)
    assert refused.value.next_command


def test_json_has_the_declared_fields_and_survives_a_round_trip(tmp_path: Path) -> None:
    audit = audit_adapter(two_modules(tmp_path))
    data = json.loads(json.dumps(audit.to_json(), allow_nan=False))
    assert list(data) == ["modules", "summary", "suggestion"]
    declared = (
        "name r scale singular_values stable_rank effective_rank energy_rank_90 energy_rank_95 energy_rank_99 "
        "utilization spectral_norm_scaled frobenius_norm_scaled alpha a_key b_key shapes params module_type layer "
        "dora udr udr_f sdi"
    )
    assert set(declared.split()) <= data["modules"][0].keys()
    assert [module["name"] for module in data["modules"]] == [Q0, Q1]
    assert Audit.from_json(data) == audit


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("modules"),
        lambda data: data.pop("summary"),
        lambda data: data["modules"][0].pop("r"),
        lambda data: data["modules"][0].update(colour="red"),
        lambda data: data.update(modules=3),
    ],
)
def test_what_is_no_audit_is_refused(tmp_path: Path, damage: Any) -> None:
    data = audit_adapter(two_modules(tmp_path)).to_json()
    damage(data)
    with pytest.raises(FormatError, match="not an audit"):
        Audit.from_json(data)


def test_views_for_allocation(tmp_path: Path) -> None:
    audit = audit_adapter(two_modules(tmp_path))
    assert audit.ranks == {Q0: 4, Q1: 4}
    assert [(s.name, s.in_features, s.out_features) for s in audit.shapes] == [(Q0, 12, 10), (Q1, 12, 10)]
    assert audit.spectra[Q1] == audit.modules[1].singular_values


def test_the_number_of_threads_is_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        audit_adapter(two_modules(tmp_path))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def planted(sigma: dict[str, list[float]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Modules with the given singular values of BA (scale 2 comes on top)."""
    pairs = {}
    for name, values in sigma.items():
        a, b = torch.zeros(4, 12, dtype=torch.float64), torch.zeros(10, 4, dtype=torch.float64)
        a[:, :4], b[:4, :] = torch.eye(4), torch.diag(torch.tensor(values, dtype=torch.float64))
        pairs[name] = (a, b)
    return pairs


def test_summary_by_hand(tmp_path: Path) -> None:
    sigma = {Q0: [1.0, 1.0, 1.0, 1.0], Q1: [3.0, 0.0, 0.0, 0.0], UP0: [1.0, 1.0, 0.0, 0.0], "score": [1.0, 0, 0, 0]}
    pairs = planted(sigma)
    pairs[UP0] = (torch.cat((pairs[UP0][0], torch.zeros(4, 100)), 1), pairs[UP0][1])  # 4 · 122 parameters, not 4 · 22
    summary = audit_adapter(write_adapter(tmp_path, named_tensors(pairs))).summary
    assert (summary["n_modules"], summary["n_layers"]) == (4, 2)
    assert summary["total_lora_params"] == 3 * 88 + 488
    assert summary["frobenius_norm_scaled"] == pytest.approx(2 * 4)  # energies 4, 9, 2, 1
    assert summary["stable_rank_mean"] == pytest.approx(2.0)
    assert summary["stable_rank_median"] == pytest.approx(1.5)
    assert summary["stable_rank_weighted_mean"] == pytest.approx((4 * 88 + 88 + 2 * 488 + 88) / 752)
    assert summary["energy_rank_90_p50"] == 1.5
    assert summary["energy_rank_90_p90"] == pytest.approx(3.4)
    assert summary["by_type"]["attn"]["energy_share"] == pytest.approx(13 / 16)
    assert summary["by_type"]["mlp"]["n_modules"] == 1
    assert summary["by_type"]["other"]["energy_share"] == pytest.approx(1 / 16)
    composition = summary["composition"]
    assert [(layer["layer"], layer["share"]) for layer in composition["layers"]] == [
        (0, pytest.approx(6 / 16)),
        (1, pytest.approx(9 / 16)),
        (None, pytest.approx(1 / 16)),
    ]
    assert composition["hhi"] == pytest.approx((36 + 81 + 1) / 256)
    assert composition["hhi_label"] == "concentrated"
    assert composition["top_10_percent"] == {"k": 1, "share": pytest.approx(9 / 16), "layers": ["model.layers.1"]}
    assert composition["top_k"]["share"] == pytest.approx(1.0)
    assert [m["name"] for m in summary["gain"]["top_modules"]] == [Q1, Q0, UP0, "score"]
    assert summary["gain"]["top_layers"][0]["path"] == "model.layers.1"
    assert summary["base"] is None


@pytest.mark.parametrize(
    ("layers", "label"),
    [(2, "concentrated"), (3, "moderately concentrated"), (4, "moderately concentrated"), (5, "distributed")],
)
def test_labels_of_concentration(tmp_path: Path, layers: int, label: str) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(layers)]
    summary = audit_adapter(
        write_adapter(tmp_path, named_tensors(planted({name: [1.0, 0, 0, 0] for name in names})))
    ).summary
    assert summary["composition"]["hhi"] == pytest.approx(1 / layers)
    assert summary["composition"]["hhi_label"] == label


def test_notes_reach_the_summary(tmp_path: Path) -> None:
    peft_adapter(tmp_path, use_dora=True)
    assert "direction update" in audit_adapter(tmp_path).summary["notes"][0]


def test_an_audit_is_immutable(tmp_path: Path) -> None:
    audit = audit_adapter(two_modules(tmp_path))
    with pytest.raises(AttributeError):
        audit.modules = ()  # type: ignore[misc]
    assert replace(audit, suggestion={}).modules == audit.modules


def test_allocation_needs_no_torch() -> None:
    code = (
        "import sys, nullarm.protocols.rank_mechanism.allocate, nullarm.protocols.rank_mechanism.suggest;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
