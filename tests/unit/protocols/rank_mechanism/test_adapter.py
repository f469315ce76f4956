from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import Q0, Q1, UP0, factors, named_tensors, peft_adapter, two_modules, write_adapter
from safetensors.torch import load_file, save_file

from nullarm.errors import AdapterError
from nullarm.protocols.rank_mechanism.adapter import Adapter, open_adapter
from nullarm.protocols.rank_mechanism.adapter_config import pattern_value

PREFIXED = "base_model.model.{name}.lora_{part}.weight"


@pytest.mark.parametrize(
    "key",
    [
        PREFIXED,
        "{name}.lora_{part}.weight",
        "base_model.model.{name}.lora_{part}.default.weight",
        "{name}.lora_{part}.my_adapter.weight",
    ],
)
def test_every_form_of_key_resolves_to_the_same_module(tmp_path: Path, key: str) -> None:
    adapter = open_adapter(write_adapter(tmp_path, named_tensors({Q0: factors()}, key)))
    assert [module.name for module in adapter.modules] == [Q0]


def test_wrappers_of_wrapped_modules_are_not_part_of_the_name(tmp_path: Path) -> None:
    key = "base_model.model.attn.base_layer.out_proj.lora_{part}.weight"
    adapter = open_adapter(write_adapter(tmp_path, named_tensors({"": factors()}, key)))
    assert [module.name for module in adapter.modules] == ["attn.out_proj"]


def test_modules_come_in_layer_order(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2, 10)]
    adapter = open_adapter(write_adapter(tmp_path, named_tensors({name: factors() for name in reversed(names)})))
    assert [module.name for module in adapter.modules] == names


def test_shapes_parameters_and_scale(tmp_path: Path) -> None:
    (module, _) = open_adapter(two_modules(tmp_path)).modules
    assert (module.r, module.in_features, module.out_features, module.params) == (4, 12, 10, 88)
    assert module.scale == 2.0
    (module, _) = open_adapter(two_modules(tmp_path, use_rslora=True)).modules
    assert module.scale == 4.0


def test_patterns_change_rank_and_scale(tmp_path: Path) -> None:
    tensors = named_tensors({Q0: factors(r=4), Q1: factors(r=2), UP0: factors(r=4)})
    adapter = open_adapter(
        write_adapter(
            tmp_path,
            tensors,
            lora_alpha=8,
            rank_pattern={"layers.1.self_attn.q_proj": 2},
            alpha_pattern={"up_proj": 1},
        )
    )
    found = {module.name: (module.r, module.scale) for module in adapter.modules}
    assert found == {Q0: (4, 2.0), Q1: (2, 4.0), UP0: (4, 0.25)}


@pytest.mark.parametrize(
    "patterns",
    [
        {"q_proj": 1},
        {"proj": 1},
        {"self_attn.q_proj": 1, "q_proj": 2},
        {"q_proj": 2, "self_attn.q_proj": 1},
        {r"^model\.layers\.0\.self_attn\.q_proj": 1},
        {"layers.[02].*": 1},
        {r".*\.layers\.1\..*": 1, Q0: 2},
        {"ayers.0.self_attn.q_proj": 1},
        {},
    ],
)
@pytest.mark.parametrize("module", [Q0, Q1, UP0, "q_proj"])
def test_patterns_match_as_in_peft(patterns: dict[str, int], module: str) -> None:
    from peft.utils.other import get_pattern_key

    assert pattern_value(patterns, module, -1) == patterns.get(get_pattern_key(list(patterns), module), -1)


def test_batches_hold_equal_shapes_and_stay_within_the_bound(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(5)]
    tensors = named_tensors({**{name: factors(seed=i) for i, name in enumerate(names)}, UP0: factors(n_out=20)})
    adapter = open_adapter(write_adapter(tmp_path, tensors))
    seen: list[str] = []
    for batch, a, b in adapter.batches(max_elements=2 * 88 + 1):
        assert a.shape == (len(batch), 4, 12)
        assert b.shape[::2] == (len(batch), 4)
        assert a.numel() + b.numel() <= 2 * 88 + 1
        for module, a_module in zip(batch, a, strict=True):
            assert torch.equal(a_module, tensors[f"base_model.model.{module.name}.lora_A.weight"])
            seen.append(module.name)
    assert sorted(seen) == sorted([*names, UP0])


def test_a_module_larger_than_the_bound_is_a_batch_of_its_own(tmp_path: Path) -> None:
    assert [len(batch) for batch, _, _ in open_adapter(two_modules(tmp_path)).batches(max_elements=1)] == [1, 1]


def test_opening_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, keys: object) -> list[torch.Tensor]:
        raise AssertionError(f"read {keys}")

    monkeypatch.setattr("nullarm.protocols.rank_mechanism.adapter.read_safetensors", refuse)
    adapter = open_adapter(two_modules(tmp_path))
    with pytest.raises(AssertionError, match="lora_A"):
        next(adapter.batches(1))


def test_dora_is_marked_and_said(tmp_path: Path) -> None:
    peft_adapter(tmp_path, use_dora=True)
    adapter = open_adapter(tmp_path)
    assert len(adapter.modules) == 6
    assert all(module.dora for module in adapter.modules)
    assert "direction update" in adapter.notes[0]
    assert len(adapter.notes) == 1, "magnitudes are no foreign tensors"


def test_embeddings_and_modules_to_save_are_noted(tmp_path: Path) -> None:
    peft_adapter(tmp_path, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"])
    adapter = open_adapter(tmp_path)
    assert {module.name.rpartition(".")[2] for module in adapter.modules} == {"q_proj"}
    notes = " / ".join(adapter.notes)
    assert "not audited, embedding: model.embed_tokens" in notes
    assert "modules_to_save" in notes
    assert "norm.weight" in notes


class Convolutional(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.head = torch.nn.Linear(8, 5)


def test_convolutions_are_skipped_with_a_note(tmp_path: Path) -> None:
    peft_adapter(tmp_path, Convolutional(), target_modules=["conv", "head"])
    adapter = open_adapter(tmp_path)
    assert [module.name for module in adapter.modules] == ["head"]
    assert adapter.notes == ("not audited, convolution: conv",)


class Experts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.randn(3, 8, 6))
        self.down = torch.nn.Parameter(torch.randn(3, 6, 8))
        self.gate = torch.nn.Linear(8, 3)


class Mixture(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()


def test_targeted_parameters_are_skipped_with_a_note(tmp_path: Path) -> None:
    peft_adapter(tmp_path, Mixture(), target_modules=["gate"], target_parameters=["experts.up", "experts.down"])
    adapter = open_adapter(tmp_path)
    assert [module.name for module in adapter.modules] == ["experts.gate"]
    assert adapter.notes == ("not audited, bare parameters (target_parameters): experts, experts.base_layer",)


def test_a_pickle_is_read_only_when_asked_for(tmp_path: Path) -> None:
    two_modules(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="pickle") as refused:
        open_adapter(tmp_path)
    assert "--allow-pickle" in str(refused.value)
    ((batch, a, _),) = open_adapter(tmp_path, allow_pickle=True).batches(10**6)
    assert [module.name for module in batch] == [Q0, Q1]
    assert torch.equal(a[1], factors(seed=1)[0])


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    two_modules(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"x": Adapter}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="not a readable state dict"):
        open_adapter(tmp_path, allow_pickle=True)


Damage = Callable[[Path], object]


def without(key: str) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        tensors = load_file(path)
        del tensors[key]
        save_file(tensors, path)

    return damage


def with_tensor(key: str, tensor: torch.Tensor) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        save_file({**load_file(path), key: tensor}, path)

    return damage


def with_config(**changes: Any) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), ["has no adapter_config.json", "next: nullarm audit"]),
        (lambda d: (d / "adapter_config.json").write_text("{"), ["adapter_config.json", "one JSON object"]),
        (lambda d: (d / "adapter_config.json").write_text("[]"), ["adapter_config.json", "got 'list'"]),
        (lambda d: (d / "adapter_model.safetensors").unlink(), ["has no weights", "adapter_model.safetensors"]),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x00" * 20), ["not a readable safetensors file"]),
        (without(f"base_model.model.{Q0}.lora_B.weight"), [Q0, "has no lora_B", "save_pretrained"]),
        (without(f"base_model.model.{Q1}.lora_A.weight"), [Q1, "has no lora_A"]),
        (
            with_tensor(f"base_model.model.{Q0}.lora_B.weight", torch.ones(10, 3)),
            [Q0, "disagree on the rank", "A (4, 12), B (10, 3)"],
        ),
        (with_tensor(f"base_model.model.{Q0}.lora_B.weight", torch.ones(0)), [Q0, "no matrices", "gather the shards"]),
        (
            with_tensor(f"{Q0}.lora_A.other.weight", torch.ones(4, 12)),
            ["two tensors are lora_A of one module", "other", "one adapter per directory"],
        ),
        (with_config(r=8), [Q0, "has rank 4 in its tensors, 8 in adapter_config.json", "rank_pattern"]),
        (with_config(rank_pattern={"q_proj": 2}), [Q0, "rank 4 in its tensors, 2"]),
        (with_config(rank_pattern={"(": 2}), ["not a regular expression", "'('"]),
        (with_config(rank_pattern=[2]), ["rank_pattern", "pattern: number"]),
        (with_config(rank_pattern={"q_proj": 2.5}), ["rank_pattern[q_proj]", "2.5", "integer"]),
        (with_config(r=0), ["r is unusable", "got 0", "≥ 1"]),
        (with_config(r=None), ["r is unusable", "nothing"]),
        (with_config(lora_alpha="x"), ["lora_alpha", "'x'", "finite number"]),
        (with_config(target_parameters="x"), ["target_parameters", "list"]),
        (with_config(peft_type="IA3"), ["peft_type", "'IA3'", "LORA"]),
        (with_config(use_qalora=True), ["use_qalora=True", "not scale · BA"]),
    ],
)
def test_damaged_adapters_are_refused_with_culprit_and_next_step(
    tmp_path: Path, damage: Damage, words: list[str]
) -> None:
    damage(two_modules(tmp_path))
    with pytest.raises(AdapterError) as refused:
        open_adapter(tmp_path)
    message = str(refused.value)
    assert "\n" not in message
    assert refused.value.valid
    assert refused.value.next_command
    for word in words:
        assert word in message


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"nowhere does not exist; valid: .*adapter_config.json.*next: nullarm audit"
    ):
        open_adapter(tmp_path / "nowhere")


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no linear LoRA module to audit; got 'no tensors'"):
        open_adapter(write_adapter(tmp_path, {}))
    with pytest.raises(AdapterError, match=r"no linear LoRA module to audit; got 'score.weight'"):
        open_adapter(write_adapter(tmp_path, {"score.weight": torch.ones(2, 2)}))


def test_rslora_scale_is_that_of_each_rank(tmp_path: Path) -> None:
    updates = peft_adapter(tmp_path, use_rslora=True, rank_pattern={"q_proj": 9})
    for module in open_adapter(tmp_path).modules:
        assert module.scale == 8 / math.sqrt(9 if "q_proj" in module.name else 4)
        assert module.name in updates
