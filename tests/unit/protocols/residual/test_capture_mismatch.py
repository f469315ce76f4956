"""Pairs that do not fit part by part: what can be compared is, what cannot is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bpes import bpe
from transformers import AutoConfig, AutoModelForCausalLM

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.models.instantiate import tokenizer_for
from nullarm.models.shapes import SHAPES
from nullarm.protocols.residual.tables import CAPTURE, LAYERS_NAME, VOCABULARY_NAME
from support.pairs import capture_of, captured, residual_study, save_model, scale_block

TEXTS = ["the cat sat on the mat", "a catalogue of mats", "émile, the other cat, ran on"]


def save_other(path: Path, tokenizer: Any = None, **changes: object) -> str:
    """A random Llama of another shape, perhaps with another tokeniser."""
    settings = {**SHAPES["tiny-llama"].config, **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    words = tokenizer_for(SHAPES["tiny-llama"]) if tokenizer is None else tokenizer
    words.save_pretrained(path)
    return str(path)


def test_different_depths_are_compared_at_relative_depth(tmp_path: Path) -> None:
    base, deep = save_model(tmp_path / "base"), save_other(tmp_path / "deep", num_hidden_layers=4)
    store = captured(tmp_path / "run", residual_study(base, deep))
    found = capture_of(store, "tuned")
    assert found.json(CAPTURE)["refused"] == {"direct_diff": "the models have different depths, 2 and 4"}
    rows = found.table("scalars").to_pandas()
    assert sorted(rows.layer.unique()) == [-1, 0, 1]
    assert rows.direct_diff.isna().all()
    assert rows[rows.kind == "pair"].cosine.notna().all()


def test_different_widths_keep_what_needs_no_common_space(tmp_path: Path) -> None:
    base, wide = save_model(tmp_path / "base"), save_other(tmp_path / "wide", hidden_size=48)
    store = captured(tmp_path / "run", residual_study(base, wide))
    found = capture_of(store, "tuned")
    refused = found.json(CAPTURE)["refused"]
    assert set(refused) >= {"cosine", "norm_diff", "relative_diff", "direct_diff", "mean_difference"}
    assert set(refused.values()) == {"the residual streams have different widths, 32 and 48"}
    pairs = found.table("scalars").to_pandas().query("kind == 'pair'")
    assert pairs[["cosine", "norm_diff", "relative_diff", "direct_diff"]].isna().all().all()
    assert pairs[pairs.layer >= 0].js.gt(0).all()
    layers = found.table(LAYERS_NAME).to_pandas()
    assert layers[layers.metric == "cka"]["value"].between(0, 1).all()
    assert (layers.metric == "cka").sum() == 3
    assert "no JSON" in conclude(store).closing  # the source's schema has no place for what is missing


def test_swaps_between_different_widths_are_refused_by_name(tmp_path: Path) -> None:
    base, wide = save_model(tmp_path / "base"), save_other(tmp_path / "wide", hidden_size=48)
    study = residual_study(base, wide, multi_pass={"enabled": True})
    store = lay_down(prepare(study), tmp_path / "run")
    failed = run(store, InlineEngine()).failed
    assert len(failed) == 1
    assert "run BS: the embedding of base does not fit the body of sft; got 'widths 32 and 48'" in next(
        iter(failed.values())
    )


def test_different_tokenisers_are_compared_where_both_have_read_the_same(tmp_path: Path) -> None:
    few, many = bpe(260), bpe(300, adds_bos=True)
    base = save_other(tmp_path / "base", few, vocab_size=260)
    sft = save_other(tmp_path / "sft", many, vocab_size=300)
    study = residual_study(base, sft, prompts=TEXTS, tracked={"strings": ["a"]})
    store = captured(tmp_path / "run", study)
    found = capture_of(store, "tuned")
    capture = found.json(CAPTURE)
    assert set(capture["refused"]) == {"loss", "rank", "loss_diff", "direct_diff"}
    assert capture["tokens_shared"] == 260
    assert capture["tokens_left_out"] == {"base": 0, "sft": 40}
    read = found.table("prompts").to_pandas().set_index("prompt")
    rows = found.table("scalars").to_pandas()
    for prompt, group in rows[(rows.kind == "pair") & (rows.layer == 1)].groupby("prompt"):
        assert group.position.tolist() == read.positions[prompt].tolist()
        assert 0 < len(group) <= len(read.ids[prompt])
    assert rows.loss.isna().all()
    assert rows[(rows.kind == "pair") & (rows.layer >= 0)].js.notna().all()


def test_padded_rows_of_the_unembedding_are_left_out(tmp_path: Path) -> None:
    base, padded = save_model(tmp_path / "base"), save_other(tmp_path / "padded", vocab_size=720)
    store = captured(tmp_path / "run", residual_study(base, padded))
    found = capture_of(store, "tuned")
    assert found.json(CAPTURE)["tokens_shared"] == 704
    assert found.json(CAPTURE)["tokens_left_out"] == {"base": 0, "sft": 16}
    ids = found.table("topk").to_pandas().indices.explode()
    assert ids.max() < 704
    vocabulary = found.table(VOCABULARY_NAME).to_pandas()
    assert vocabulary.id.tolist() == list(range(len(tokenizer_for(SHAPES["tiny-llama"]))))


def test_an_adapter_is_a_fine_tuned_side(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from nullarm.models.load import load_causal_lm

    base = save_model(tmp_path / "base")
    model, _ = load_causal_lm(base)
    tuned = get_peft_model(
        model, LoraConfig(r=2, target_modules=["down_proj"], layers_to_transform=[1], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    store = captured(tmp_path / "run", residual_study(base, str(tmp_path / "adapter")))
    rows = capture_of(store, "tuned").table("scalars").to_pandas().query("kind == 'pair'")
    changed = rows.groupby("layer").direct_diff.max()
    assert changed[-1] == changed[0] == 0
    assert changed[1] > 0


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gemma2", "tiny-gpt-neox"])
def test_other_architectures_run_whole(tmp_path: Path, name: str) -> None:
    base = save_model(tmp_path / "base", name=name)
    sft = save_model(tmp_path / "sft", scale_block(1), name=name)
    store = captured(tmp_path / "run", residual_study(base, sft, multi_pass={"enabled": True}))
    rows = capture_of(store, "tuned").table("scalars").to_pandas()
    changed = rows[(rows.record == "BB-SS")].groupby("layer").direct_diff.max()
    assert changed[0] == 0
    assert changed[1] > 0
    assert np.isfinite(rows.norm.dropna()).all()
