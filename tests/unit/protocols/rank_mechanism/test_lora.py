from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lora import logits, lora, tiny_classifier, tiny_modules, tiny_qwen, varied_ranks

from nullarm.errors import AdapterError, ModelError, StudyError
from nullarm.protocols.rank_mechanism.adapter import open_adapter
from nullarm.protocols.rank_mechanism.lora import (
    ADAPTER,
    _check_built,
    adapted_layers,
    final_ranks,
    save_adapter,
    target_modules,
)
from nullarm.protocols.rank_mechanism.ranks import lora_parameters

MODULES = tiny_modules()


def trainable_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_target_modules_come_with_their_shapes_in_the_models_order() -> None:
    assert len(MODULES) == 14
    assert MODULES[1].name == "model.layers.0.self_attn.k_proj"
    assert (MODULES[1].in_features, MODULES[1].out_features) == (64, 32)
    assert [module.name for module in target_modules(tiny_qwen(), ["v_proj"])] == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
    ]


def test_a_target_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"no linear module 'q_porj' \(did you mean 'q_proj'\?\)") as caught:
        target_modules(tiny_qwen(), ["q_porj"])
    assert "down_proj" in caught.value.valid


def test_every_module_gets_its_rank_and_the_parameters_it_costs() -> None:
    ranks = varied_ranks(MODULES)
    model = lora(ranks)
    assert final_ranks(model, MODULES) == ranks
    assert trainable_count(model) == lora_parameters(ranks, MODULES)
    assert all(("lora_A" in name or "lora_B" in name) == p.requires_grad for name, p in model.named_parameters())


def test_rank_zero_leaves_a_module_alone() -> None:
    ranks = varied_ranks(MODULES, (0, 2, 0))
    model = lora(ranks)
    assert final_ranks(model, MODULES) == ranks
    assert type(model.get_submodule(f"base_model.model.{MODULES[0].name}")) is torch.nn.Linear
    assert trainable_count(model) == lora_parameters(ranks, MODULES)


@pytest.mark.parametrize("special", ["layers.1.", "layers.11."])
def test_layers_1_never_catches_layers_11(special: str) -> None:
    modules = tiny_modules(layers=12)
    ranks = {module.name: 5 if special in module.name else 2 for module in modules}
    assert final_ranks(lora(ranks, tiny_qwen(layers=12)), modules) == ranks
    assert sum(rank == 5 for rank in ranks.values()) == 7


def test_a_name_inside_another_name_is_not_confused() -> None:
    """PEFT's patterns match dotted tails: `layers.0.q` would catch `other.layers.0.q`, too."""

    class Nested(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8)})])
            self.other = torch.nn.ModuleDict(
                {"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8)})])}
            )

        def prepare_inputs_for_generation(self) -> None:
            """PEFT's causal models ask for it."""

    for first, second in ((2, 5), (5, 2)):
        ranks = {"layers.0.q": first, "other.layers.0.q": second}
        model = lora(ranks, Nested())
        assert final_ranks(model, target_modules(Nested(), ["q"])) == ranks


@pytest.mark.parametrize(
    ("rule", "scale"),
    [("fixed", lambda r: 16 / r), ("alpha=r", lambda r: 1.0), ("rslora", lambda r: 16 / math.sqrt(r))],
)
@pytest.mark.parametrize("ranks", [(1, 4, 2, 8, 3), (4,)])
def test_one_alpha_rule_for_all_modules(rule: Any, scale: Any, ranks: tuple[int, ...]) -> None:
    wanted = varied_ranks(MODULES, ranks)
    for name, layer in adapted_layers(lora(wanted, alpha_rule=rule)).items():
        assert layer.scaling[ADAPTER] == scale(wanted[name])


def test_the_update_is_zero_at_the_start_and_global_generators_are_not_drawn_from() -> None:
    base = logits(tiny_qwen())
    before = torch.get_rng_state()
    model = lora(varied_ranks(MODULES))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(model), base)


def test_rows_have_the_distribution_of_pefts_default() -> None:
    layer = next(iter(adapted_layers(lora(varied_ranks(MODULES, (16,)))).values()))
    rows = layer.lora_A[ADAPTER].weight
    assert rows.abs().max() <= 1 / 8
    assert rows.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    reference = torch.empty(16, 64)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
    assert reference.abs().max() <= 1 / 8


def test_adapters_of_a_bf16_model_are_fp32() -> None:
    model = lora(varied_ranks(MODULES), tiny_qwen(dtype=torch.bfloat16))
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_what_peft_built_is_compared_with_what_was_asked_for() -> None:
    ranks = varied_ranks(MODULES)
    model = lora(ranks)
    wanted = {name: (rank, 16 / rank) for name, rank in ranks.items()}
    _check_built(model, wanted)
    name = MODULES[0].name
    with pytest.raises(AdapterError, match=rf"{name} was built with another .*; got \(1, 16\.0\); valid: \(2, 8\.0\)"):
        _check_built(model, {**wanted, name: (2, 8.0)})
    with pytest.raises(AdapterError, match="valid: no update at all"):
        _check_built(model, {n: w for n, w in wanted.items() if n != name})


def without(name: str) -> dict[str, int]:
    return {module.name: 2 for module in MODULES if module.name != name}


@pytest.mark.parametrize(
    ("ranks", "changes", "error", "problem"),
    [
        (without(MODULES[3].name), {}, StudyError, f"the rank map leaves out {MODULES[3].name}"),
        (
            {**varied_ranks(MODULES), "model.layers.7.mlp.up_proj": 2},
            {},
            ModelError,
            "names 'model.layers.7.mlp.up_proj'",
        ),
        ({**varied_ranks(MODULES), MODULES[0].name: 17}, {}, StudyError, "got 17; valid: whole numbers from 0 to 16"),
        ({**varied_ranks(MODULES), MODULES[0].name: -1}, {}, StudyError, "got -1; valid: whole numbers"),
        ({**varied_ranks(MODULES), MODULES[0].name: 2.5}, {}, StudyError, r"got 2\.5; valid: whole numbers"),
        (varied_ranks(MODULES, (0,)), {}, StudyError, "the rank map adapts no module"),
        (varied_ranks(MODULES), {"alpha_rule": "2r"}, StudyError, "got '2r'; valid: fixed, alpha=r, rslora"),
        (varied_ranks(MODULES), {"task_type": "SEQ2SEQ"}, StudyError, "got 'SEQ2SEQ'; valid: CAUSAL_LM, SEQ_CLS"),
    ],
)
def test_a_map_that_cannot_be_built_is_refused(
    ranks: dict[str, int], changes: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        lora(ranks, **changes)


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("rule", ["fixed", "alpha=r", "rslora"])
def test_a_saved_adapter_reloads_with_equal_logits(tmp_path: Path, rule: Any) -> None:
    from peft import PeftModel

    ranks = varied_ranks(MODULES, (1, 4, 0, 8))
    model = lora(ranks, alpha_rule=rule)
    randomise(model)
    save_adapter(model, tmp_path, base_name="builtin")
    reloaded = PeftModel.from_pretrained(tiny_qwen(), tmp_path)
    assert torch.equal(logits(reloaded), logits(model))
    assert not torch.equal(logits(model), logits(tiny_qwen()))
    assert final_ranks(reloaded, MODULES) == ranks
    audited = {module.name: module.r for module in open_adapter(tmp_path).modules}
    assert audited == {name: rank for name, rank in ranks.items() if rank}


def test_a_classifiers_head_is_trained_and_saved_with_the_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    built = lora(varied_ranks(MODULES), tiny_classifier(1), task_type="SEQ_CLS")
    randomise(built)
    save_adapter(built, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_classifier(2), tmp_path)), logits(built))


def test_equal_adapters_give_equal_bytes_on_every_machine(tmp_path: Path) -> None:
    def written(directory: Path) -> dict[str, bytes]:
        save_adapter(lora(varied_ranks(MODULES)), directory)
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    first = written(tmp_path / "1")
    assert first == written(tmp_path / "2")
    assert sorted(first) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads(first["adapter_config.json"])
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == sorted(module.name for module in MODULES), "PEFT keeps a set: random order"
