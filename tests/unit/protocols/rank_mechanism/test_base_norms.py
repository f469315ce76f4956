from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_files import Q0, Q1, UP0, factors, named_tensors, two_modules, write_adapter
from safetensors.torch import save_file

from nullarm.errors import ModelError
from nullarm.protocols.rank_mechanism import base_norms as base_norms_module
from nullarm.protocols.rank_mechanism.adapter import open_adapter
from nullarm.protocols.rank_mechanism.audit import audit_adapter
from nullarm.protocols.rank_mechanism.base_norms import BaseNorms, base_norms, default_cache
from nullarm.protocols.rank_mechanism.spectral_norm import TOLERANCE, lanczos_steps, spectral_norm


def weight(seed: int = 0, shape: tuple[int, int] = (10, 12)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def checkpoint(directory: Path, **weights: torch.Tensor) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("shape", [(200, 200), (400, 90), (90, 400), (1, 7), (7, 1), (1, 1)])
def test_spectral_norm_is_within_its_tolerance(shape: tuple[int, int]) -> None:
    for seed in range(5):
        w = weight(seed, shape)
        exact = float(torch.linalg.svdvals(w.double())[0])
        assert exact * (1 - TOLERANCE) <= spectral_norm(w) <= exact * (1 + 1e-5)


def test_a_coarser_tolerance_takes_fewer_steps_and_is_coarser() -> None:
    w = weight(0, (300, 300)).double()
    exact = float(torch.linalg.svdvals(w)[0])
    errors = [1 - spectral_norm(w, tolerance=t) / exact for t in (0.5, 0.1, 1e-3)]
    assert errors[0] > errors[1] > errors[2] >= -1e-12
    assert [lanczos_steps(300, t) for t in (0.5, 0.1, 1e-3)] == [11, 21, 193]
    assert lanczos_steps(100, 1e-3) == 100


def test_a_start_nearly_orthogonal_to_the_largest_direction_does_not_hide_it() -> None:
    # a start with little of the first direction converges to the second one first
    w = torch.diag(torch.tensor([1.02, 1.0, *torch.linspace(0, 0.5, 98).tolist()], dtype=torch.float64))
    for seed in range(50):
        assert spectral_norm(w, generator=torch.Generator().manual_seed(seed)) >= 1.02 * (1 - TOLERANCE)


@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(5, 3),
        torch.eye(4),
        torch.ones(6, 3),
        torch.diag(torch.tensor([3.0, 3.0, 2.0, 0.0])),
        weight(0, (30, 4)) @ weight(1, (4, 50)),
        weight(0, (20, 30)).bfloat16(),
    ],
)
def test_spectral_norm_of_special_matrices(w: torch.Tensor) -> None:
    assert spectral_norm(w) == pytest.approx(float(torch.linalg.svdvals(w.double())[0]), rel=1e-5)


def test_the_same_weight_has_the_same_norm_twice() -> None:
    assert spectral_norm(weight()) == spectral_norm(weight())


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model.", "other.wrapper."])
def test_weights_are_found_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    names = {Q0: 0, Q1: 1}
    base = checkpoint(
        tmp_path / "base",
        **{f"{prefix}{name.removeprefix('model.')}.weight": weight(seed) for name, seed in names.items()},
    )
    norms, missing = base_norms(base, open_adapter(two_modules(tmp_path / "a")).modules)
    assert missing == {}
    for name, seed in names.items():
        assert norms[name].spectral == pytest.approx(float(torch.linalg.svdvals(weight(seed))[0]), rel=TOLERANCE)
        assert norms[name].frobenius == pytest.approx(float(weight(seed).norm()))


def test_ratios_by_dense_svd(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": weight(0), f"{Q1}.weight": weight(1)})
    audit = audit_adapter(two_modules(tmp_path / "a"), base=base, cache=tmp_path / "cache")
    module = audit.modules[1]
    assert module.base_spectral_norm == pytest.approx(float(torch.linalg.svdvals(weight(1))[0]), rel=TOLERANCE)
    assert module.udr == pytest.approx(
        module.spectral_norm_scaled / float(torch.linalg.svdvals(weight(1))[0]), rel=1e-3
    )
    assert module.udr_f == pytest.approx(module.frobenius_norm_scaled / float(weight(1).norm()))
    assert module.udr is not None
    assert module.sdi == pytest.approx(np.log10(module.udr))
    summary = audit.summary["base"]
    ratios = [m.udr for m in audit.modules if m.udr is not None]
    assert summary["n_modules"] == 2
    assert summary["udr_max"] == max(ratios)
    assert summary["udr_mean"] == pytest.approx(np.mean(ratios))
    assert summary["udr_fraction_above_0_3"] == np.mean(np.array(ratios) > 0.3)
    update = math.hypot(*[m.frobenius_norm_scaled for m in audit.modules])
    assert summary["relative_change"] == pytest.approx(
        update / math.hypot(float(weight(0).norm()), float(weight(1).norm()))
    )


def test_a_zero_base_weight_gives_no_ratio(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": torch.zeros(10, 12), f"{Q1}.weight": weight()})
    audit = audit_adapter(two_modules(tmp_path / "a"), base=base, cache=tmp_path / "cache")
    assert audit.modules[0].base_spectral_norm == 0.0
    assert (audit.modules[0].udr, audit.modules[0].udr_f, audit.modules[0].sdi) == (None, None, None)
    assert audit.modules[1].udr is not None


def test_weights_stored_in_by_out(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": weight().mT.contiguous()})
    modules = open_adapter(two_modules(tmp_path / "a")).modules
    assert base_norms(base, modules)[0] == {}
    assert set(base_norms(base, modules, fan_in_fan_out=True)[0]) == {Q0}


def test_missing_weights_are_null_with_a_note(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": weight()})
    audit = audit_adapter(two_modules(tmp_path / "a"), base=base, cache=tmp_path / "cache")
    assert audit.modules[0].udr is not None
    assert audit.modules[1].udr is None
    assert audit.summary["notes"] == [f"no ratio to base weights, no base weight of that name and shape: {Q1}"]


def test_a_name_without_its_layer_is_not_enough(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{"model.layers.7.self_attn.q_proj.weight": weight()})
    assert base_norms(base, open_adapter(two_modules(tmp_path / "a")).modules)[0] == {}


def test_ambiguous_weights_are_not_guessed(tmp_path: Path) -> None:
    towers = {f"{tower}.layers.0.self_attn.q_proj.weight": weight(i) for i, tower in enumerate(("vision", "language"))}
    adapter = open_adapter(two_modules(tmp_path / "a"))
    norms, missing = base_norms(checkpoint(tmp_path / "base", **towers), adapter.modules)
    assert norms == {}
    assert missing[Q0] == "several base weights could be meant"


def test_the_shape_tells_towers_apart(tmp_path: Path) -> None:
    towers = {
        "vision.layers.0.self_attn.q_proj.weight": weight(0, (6, 6)),
        "language.layers.0.self_attn.q_proj.weight": weight(1),
    }
    norms, _ = base_norms(checkpoint(tmp_path / "base", **towers), open_adapter(two_modules(tmp_path / "a")).modules)
    assert norms[Q0].frobenius == pytest.approx(float(weight(1).norm()))


def test_quantised_weights_are_noted(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": torch.ones(10, 12, dtype=torch.int8)})
    _, missing = base_norms(base, open_adapter(two_modules(tmp_path / "a")).modules)
    assert missing[Q0] == "base weight is quantised (torch.int8)"


def sharded(directory: Path) -> Path:
    directory.mkdir()
    shards = {"model-00001-of-00002.safetensors": (Q0, 0), "model-00002-of-00002.safetensors": (Q1, 1)}
    for file, (name, seed) in shards.items():
        save_file({f"{name}.weight": weight(seed)}, directory / file)
    index = {"weight_map": {f"{name}.weight": file for file, (name, _) in shards.items()}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_sharded_checkpoints(tmp_path: Path) -> None:
    norms, missing = base_norms(sharded(tmp_path / "base"), open_adapter(two_modules(tmp_path / "a")).modules)
    assert missing == {}
    assert norms[Q1].frobenius == pytest.approx(float(weight(1).norm()))


def test_unreadable_checkpoints_are_refused(tmp_path: Path) -> None:
    modules = open_adapter(two_modules(tmp_path / "a")).modules
    with pytest.raises(ModelError, match="no such directory"):
        base_norms(tmp_path / "nowhere", modules)
    with pytest.raises(ModelError, match=r"no safetensors weights.*model.safetensors.index.json"):
        base_norms(tmp_path, modules)
    base = sharded(tmp_path / "base")
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks a shard.*model-00002-of-00002"):
        base_norms(base, modules)
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="not an index of shards"):
        base_norms(base, modules)
    bad = checkpoint(tmp_path / "bad", **{f"{Q0}.weight": torch.full((10, 12), torch.nan)})
    with pytest.raises(ModelError, match=r"q_proj.weight.*not finite; got '120 of 120'"):
        base_norms(bad, modules)


def test_norms_are_remembered_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = open_adapter(two_modules(tmp_path / "a")).modules
    first = base_norms(sharded(tmp_path / "base"), modules, cache=tmp_path / "cache")

    def refuse(w: torch.Tensor) -> float:
        raise AssertionError("computed again")

    monkeypatch.setattr(base_norms_module, "spectral_norm", refuse)
    other = checkpoint(tmp_path / "other", **{f"{Q0}.weight": weight(0), f"{Q1}.weight": weight(1)})
    assert base_norms(other, modules, cache=tmp_path / "cache") == first, "same content, another file"
    changed = checkpoint(tmp_path / "other", **{f"{Q0}.weight": weight(2), f"{Q1}.weight": weight(1)})
    with pytest.raises(AssertionError, match="computed again"):
        base_norms(changed, modules, cache=tmp_path / "cache")


def test_a_damaged_or_unwritable_cache_costs_time_only(tmp_path: Path) -> None:
    modules = open_adapter(two_modules(tmp_path / "a")).modules
    base = sharded(tmp_path / "base")
    first, _ = base_norms(base, modules, cache=tmp_path / "cache")
    for entry in (tmp_path / "cache").iterdir():
        entry.write_text('{"spectral": "much"}')
    assert base_norms(base, modules, cache=tmp_path / "cache")[0] == first
    (tmp_path / "file").touch()
    assert base_norms(base, modules, cache=tmp_path / "file")[0] == first


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "nullarm" / "base-norms"
    base = checkpoint(tmp_path / "base", **{f"{Q0}.weight": weight()})
    audit_adapter(write_adapter(tmp_path / "a", named_tensors({Q0: factors()})), base=base)
    assert len(list(default_cache().glob("*.json"))) == 1


def test_half_precision_weights(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", **{f"{UP0}.weight": weight().bfloat16()})
    adapter = open_adapter(write_adapter(tmp_path / "a", named_tensors({UP0: factors()})))
    norms = base_norms(base, adapter.modules)[0][UP0]
    exact = weight().bfloat16().double()
    assert isinstance(norms, BaseNorms)
    assert norms.frobenius == pytest.approx(float(exact.norm()), rel=1e-6)
    assert norms.spectral == pytest.approx(float(torch.linalg.svdvals(exact)[0]), rel=TOLERANCE)
