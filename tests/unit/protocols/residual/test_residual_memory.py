"""Estimated memory of pairs, against the source's rule of four bytes a parameter and sums written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nullarm.models.facts import parameter_count, shape_facts
from nullarm.protocols.residual.memory import GIB, MemoryNeed, fit_notes, fits, pair_memory
from nullarm.protocols.residual.parameters import Pair, ResidualParameters
from nullarm.sites.devices import DEVICES

QWEN = Pair(base="Qwen/Qwen2.5-0.5B", sft="Qwen/Qwen2.5-0.5B-Instruct")
SEVEN = Pair(base="Qwen/Qwen2.5-7B", sft="Qwen/Qwen2.5-7B-Instruct")


def asked(pairs: dict[str, Pair] | None = None, **more: Any) -> ResidualParameters:
    return ResidualParameters(pairs=pairs or {"pair": QWEN}, prompts=("a",), **{"dtype": "bfloat16", **more})


def placements(pair: Pair, parameters: ResidualParameters) -> dict[str, str]:
    gpus = [device for device in DEVICES.values() if device.memory_bytes]
    return {row.device.name: row.placement for row in fits({"pair": pair}, parameters, gpus)}


@pytest.mark.parametrize(
    ("base", "gigabytes"),
    [
        ("Qwen/Qwen2.5-0.5B", 2.0), ("Qwen/Qwen2.5-1.5B", 6.2), ("Qwen/Qwen2.5-3B", 12.4), ("Qwen/Qwen2.5-7B", 30.5),
        ("Qwen/Qwen2.5-Math-1.5B", 6.2), ("Qwen/Qwen2.5-Math-7B", 30.5), ("meta-llama/Llama-3.1-8B", 32.0),
    ],
)  # fmt: skip
def test_two_models_in_bf16_take_what_the_source_says(base: str, gigabytes: float) -> None:
    need = pair_memory(Pair(base=base, sft=f"{base}-Instruct"), asked())
    assert need.weights_bytes / 1e9 == pytest.approx(gigabytes, rel=0.1)
    assert need.weights_bytes == 4 * parameter_count(base)


def test_a_pair_of_its_own_dtype_is_counted_in_it() -> None:
    half, full = pair_memory(QWEN, asked()), pair_memory(QWEN, asked(dtype="float32"))
    assert full.weights_bytes == 2 * half.weights_bytes
    assert full.blocks_bytes == tuple(2 * size for size in half.blocks_bytes)
    assert pair_memory(QWEN.model_copy(update={"dtype": "float32"}), asked()) == full


def test_activations_grow_with_the_batch_and_the_passes_and_with_nothing_else() -> None:
    small, large = pair_memory(QWEN, asked(batch_tokens=1024)), pair_memory(QWEN, asked(batch_tokens=2048))
    facts = shape_facts(QWEN.base)
    stream = 2 * 1024 * (facts.layers + 1) * facts.hidden_size
    assert large.pass_bytes == 2 * small.pass_bytes
    inherited = pair_memory(QWEN, asked(batch_tokens=1024, direct_change=False))
    assert small.activation_bytes - inherited.activation_bytes == stream
    factorial = pair_memory(QWEN, asked(batch_tokens=1024, multi_pass={"enabled": True}, direct_change=False))
    assert (
        factorial.activation_bytes - inherited.activation_bytes == 4 * stream
    )  # four runs for two, residual and normed
    many = asked(batch_tokens=1024).model_copy(update={"prompts": ("a",) * 1000})
    assert pair_memory(QWEN, many) == small


def test_a_model_paired_with_itself_is_loaded_once_and_its_noise_beside_it() -> None:
    both = pair_memory(QWEN, asked())
    same = Pair(base=QWEN.base, sft=QWEN.base)
    assert pair_memory(same, asked()).weights_bytes == both.weights_bytes / 2
    noise = same.model_copy(update={"sft_weights": "matched_noise"})
    assert pair_memory(noise, asked()).weights_bytes == both.weights_bytes


def test_an_adapter_counts_as_a_second_copy_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert pair_memory(Pair(base=QWEN.base, sft=str(tmp_path)), asked()) == pair_memory(QWEN, asked())


def test_one_model_at_a_time_takes_the_other_ones_blocks_less() -> None:
    tied = shape_facts(QWEN.base)
    need = pair_memory(QWEN, asked())
    outside = 2 * tied.hidden_size * tied.vocabulary_size
    assert need.blocks_bytes == (need.weights_bytes // 2 - outside,) * 2
    assert MemoryNeed(100, (40, 30), 25, 5).together == 125
    assert MemoryNeed(100, (40, 30), 25, 5).sequential == 30 + 40 + 5
    assert MemoryNeed(100, (40, 30), 90, 5).sequential == 30 + 90


def test_a_pair_fits_together_or_one_at_a_time_or_not_at_all() -> None:
    assert placements(SEVEN, asked()) == {
        "rtx4090": "sequential", "a100-40": "together", "l40s": "together", "a100-80": "together", "h100": "together",
        "h200": "together",
    }  # fmt: skip
    assert placements(SEVEN, asked(placement="together"))["rtx4090"] == "no"
    assert placements(SEVEN, asked(placement="sequential"))["h200"] == "sequential"
    assert placements(SEVEN, asked(dtype="float32"))["rtx4090"] == "no"


def test_notes_say_what_pairs_need_and_where_they_fit() -> None:
    notes = fit_notes(asked({"small": QWEN, "large": SEVEN}))
    need = pair_memory(SEVEN, asked()).together / GIB
    assert notes[0].startswith("memory with both models, GiB: small ")
    assert notes[0].endswith(f"large {need:.1f}")
    assert notes[1] == "rtx4090 (24 GiB): fits small; one model at a time large"
    assert "a100-80 and h100 (80 GiB): fits every pair" in notes
    too_large = fit_notes(asked({"small": QWEN, "large": SEVEN}, placement="together"))
    assert too_large[1] == "rtx4090 (24 GiB): fits small; too small for large"


def test_pairs_that_fit_everywhere_take_one_line() -> None:
    (note,) = fit_notes(asked({"tiny": Pair(base="builtin:world", sft="builtin:world")}))
    assert note.endswith("every pair fits every GPU")


def test_a_pair_of_unknown_size_is_named() -> None:
    unknown = Pair(base="nobody/knows-this", sft="nobody/knows-this-Instruct")
    assert fit_notes(asked({"odd": unknown})) == (
        "memory of odd is not known: the configuration of this hub model is not on this machine: nobody/knows-this",
    )
    assert len(fit_notes(asked({"small": QWEN, "odd": unknown}))) == 2
