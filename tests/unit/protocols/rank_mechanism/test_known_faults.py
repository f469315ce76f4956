"""Faults of the system this protocol replaces, each shown mended. One test per fault, named after it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_files import peft_adapter, two_modules
from spectra import LADDER, llama_shapes, spectra_for
from tiny_lora import tiny_qwen

from nullarm.errors import AdapterError
from nullarm.protocols.rank_mechanism.allocate import AllocationPolicy, allocate
from nullarm.protocols.rank_mechanism.audit import audit_adapter
from nullarm.protocols.rank_mechanism.ranks import lora_parameters

POLICY = AllocationPolicy(energy=1.0, allowed_ranks=LADDER)
SHAPES = llama_shapes(6)
# most modules want rank 4; every seventh wants more, every fifth less
WANTED = {s.name: 8 if i % 7 == 0 else 2 if i % 5 == 0 else 4 for i, s in enumerate(SHAPES)}
MODAL = [name for name, rank in WANTED.items() if rank == 4]


def made_maps() -> dict[str, dict[str, int]]:
    probe = dict.fromkeys(WANTED, 16)
    rng = np.random.default_rng(0)
    return dict(allocate(spectra_for(WANTED), SHAPES, probe, POLICY, shuffles=19, rng=rng).maps)


def test_fault_modal_rank_left_out_of_the_override_map() -> None:
    # the original gave PEFT only the ranks that differ from the commonest one, and left the rest at the probe's rank
    for arm, rank_map in made_maps().items():
        assert rank_map.keys() == WANTED.keys(), arm
    assert {made_maps()["audited"][name] for name in MODAL} == {4}


def test_fault_modal_rank_modules_are_built_at_their_rank_by_peft(tmp_path: Path) -> None:
    ranks = {shape.name: 3 for shape in llama_shapes(2)}
    ranks["model.layers.0.mlp.up_proj"] = 1
    peft_adapter(tmp_path, r=16, rank_pattern=ranks, target_modules=sorted(n.rpartition(".")[2] for n in ranks))
    assert audit_adapter(tmp_path).ranks == ranks


def test_fault_only_overrides_were_shuffled() -> None:
    # modules at the commonest rank took no part in the shuffle
    maps = made_maps()
    moved = {name for arm, m in maps.items() if arm.startswith("shuffled") for name in MODAL if m[name] != 4}
    assert len(moved) > len(MODAL) / 2


def test_fault_shuffles_did_not_preserve_parameters() -> None:
    maps = made_maps()
    target = lora_parameters(maps["audited"], SHAPES)
    shuffles = [m for arm, m in maps.items() if arm.startswith("shuffled")]
    assert {lora_parameters(m, SHAPES) for m in shuffles} == {target}
    # what the original did, a permutation over modules of all shapes, does not even do so by chance
    names, ranks = list(WANTED), list(WANTED.values())
    rng = np.random.default_rng(0)
    careless = [dict(zip(names, rng.permutation(ranks).tolist(), strict=True)) for _ in range(19)]
    assert all(Counter(m.values()) == Counter(ranks) for m in careless)
    assert {lora_parameters(m, SHAPES) for m in careless} != {target}


@pytest.mark.parametrize("saved_as", ["causal_lm", "base_model"])
def test_fault_udr_null_because_of_the_key_prefix(tmp_path: Path, saved_as: str) -> None:
    # adapter keys start with `base_model.model.`, base keys do not, and looking one up in the other found nothing
    model = tiny_qwen()
    (model if saved_as == "causal_lm" else model.model).save_pretrained(str(tmp_path / "base"))
    peft_adapter(tmp_path / "adapter", model)
    audit = audit_adapter(tmp_path / "adapter", base=tmp_path / "base", cache=tmp_path / "cache")
    assert len(audit.modules) == 6
    fresh = tiny_qwen()
    for module in audit.modules:
        weight = fresh.get_submodule(module.name).weight.detach().double()
        assert module.udr == pytest.approx(
            module.spectral_norm_scaled / float(torch.linalg.svdvals(weight)[0]), rel=1e-2
        )
    assert audit.summary["notes"] == []


def test_fault_first_checkpoint_audited_instead_of_the_final_adapter(tmp_path: Path) -> None:
    two_modules(tmp_path / "checkpoint-100", lora_alpha=1)
    two_modules(tmp_path / "checkpoint-200", lora_alpha=2)
    with pytest.raises(AdapterError) as refused:  # no final adapter: asks which one, rather than taking the first
        audit_adapter(tmp_path)
    assert "checkpoint-100" in str(refused.value)
    assert "checkpoint-200" in str(refused.value)
    two_modules(tmp_path, lora_alpha=8)
    assert audit_adapter(tmp_path).modules[0].alpha == 8
