from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from causal_trials import (
    PROMPTS,
    cell_of,
    changed,
    finished_cell,
    load,
    opened,
    other_block,
    pair,
    run,
    untouched,
)

from nullarm.errors import InvalidResult, ModelError, Preempted
from nullarm.protocols.residual.capture.pair_models import Loaded
from nullarm.protocols.residual.causal import interventions
from nullarm.protocols.residual.causal.layer_swap import spans
from nullarm.protocols.residual.causal.tables import DIRECTIONS, SPANS


def all_blocks(model: Any) -> None:
    for block in (0, 1):
        other_block(block)(model)


def of_blocks(frame: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    return frame[(frame["first"] == first) & (frame["last"] == last)]


def test_spans_are_windows_prefixes_and_suffixes() -> None:
    assert spans(3, 2) == [
        *(("window", blocks) for blocks in [(0, 1), (1, 2)]),
        *(("prefix", blocks) for blocks in [(0, 0), (0, 1), (0, 2)]),
        *(("suffix", blocks) for blocks in [(0, 2), (1, 2), (2, 2)]),
    ]


def test_a_window_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    words = "causal.window is more blocks than the model has; got 3; valid: 1 to 2"
    with opened(tmp_path, cell_of("layer_swap", window=3)) as context, pytest.raises(ModelError, match=words):
        interventions.run(context, pair(load(), load(seed=2)))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gpt2"])
def test_every_number_is_that_of_a_model_put_together_by_hand(tmp_path: Path, name: str) -> None:
    base, sft = load(name, 1), load(name, 2)
    frame, _ = run(tmp_path, cell_of("layer_swap"), pair(base, sft))
    target, foil = (base.tokenizer(text)["input_ids"][0] for text in ("red", "blue"))

    def ends(loaded: Loaded, prompt: str) -> tuple[float, float | None, torch.Tensor]:
        ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            z = loaded.anatomy.model(input_ids=ids, use_cache=False).logits[0].double()
        losses = -z[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        return float(z[-1, target] - z[-1, foil]), float(losses.mean()) if len(losses) else None, z[-1].log_softmax(-1)

    def with_blocks(recipient: Loaded, donor: Loaded, first: int, last: int) -> Loaded:
        copy = changed(recipient, lambda model: None)
        for block in range(first, last + 1):
            copy.anatomy.blocks[block].load_state_dict(donor.anatomy.blocks[block].state_dict())
        return copy

    models = {"base": base, "sft": sft}
    assert len(frame) == len(PROMPTS) * 2 * len(spans(2, 1))
    for row in frame.to_dict("records"):
        donor, recipient = (models[side] for side in DIRECTIONS[row["direction"]])
        prompt = PROMPTS[row["prompt"]]
        outcome, loss, p = ends(with_blocks(recipient, donor, row["first"], row["last"]), prompt)
        assert row["outcome"] == pytest.approx(outcome, abs=2e-5)
        for which, loaded in (("donor", donor), ("recipient", recipient)):
            expected, own_loss, q = ends(loaded, prompt)
            assert row[which] == pytest.approx(expected, abs=2e-5)
            assert row[f"kl_{which}"] == pytest.approx(float((q.exp() * (q - p)).sum()), abs=1e-5)
            assert (
                pd.isna(row[f"loss_{which}"]) if own_loss is None else row[f"loss_{which}"] == pytest.approx(own_loss)
            )
        assert pd.isna(row["loss"]) if loss is None else row["loss"] == pytest.approx(loss, abs=2e-5)


def test_all_blocks_make_the_donor_where_nothing_else_differs(tmp_path: Path) -> None:
    base = load()
    frame, result = run(tmp_path, cell_of("layer_swap"), pair(base, changed(base, all_blocks)))
    whole = of_blocks(frame, 0, 1)
    assert sorted(whole["span"].unique()) == ["prefix", "suffix"]
    np.testing.assert_allclose(whole["outcome"], whole["donor"], atol=1e-6)
    np.testing.assert_allclose(whole["kl_donor"], 0.0, atol=1e-7)
    np.testing.assert_allclose(whole["loss"], whole["loss_donor"], atol=1e-6)
    assert (whole["kl_before"] > 1e-4).all()
    assert result.metrics["base_into_sft_body_effect"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("block", [0, 1])
def test_the_one_block_that_differs_restores_the_donor_and_no_other_does_anything(tmp_path: Path, block: int) -> None:
    base = load()
    frame, result = run(tmp_path, cell_of("layer_swap"), pair(base, changed(base, other_block(block))))
    restored, idle = of_blocks(frame, block, block), of_blocks(frame, 1 - block, 1 - block)
    np.testing.assert_allclose(restored["outcome"], restored["donor"], atol=1e-6)
    np.testing.assert_allclose(idle["outcome"], idle["recipient"], atol=1e-6)
    np.testing.assert_allclose(idle["effect"], 0.0, atol=1e-4)
    assert len(restored) == len(idle) == len(PROMPTS) * 2 * 2
    for name in DIRECTIONS:
        assert result.metrics[f"{name}_window_first"] == result.metrics[f"{name}_half_layer"] == block
        assert result.metrics[f"{name}_window_effect"] == pytest.approx(1.0, abs=1e-4)


def test_blocks_carry_nothing_where_only_the_embedding_differs(tmp_path: Path) -> None:
    base = load()
    sft = changed(base, lambda model: model.get_input_embeddings().weight.mul_(-1))
    frame, result = run(tmp_path, cell_of("layer_swap"), pair(base, sft))
    np.testing.assert_allclose(frame["effect"], 0.0, atol=1e-4)
    assert result.metrics["base_into_sft_body_effect"] == pytest.approx(0.0, abs=1e-4)
    assert result.metrics["base_into_sft_half_layer"] is None


def test_a_model_paired_with_itself_changes_nothing(tmp_path: Path) -> None:
    model = load()
    with untouched(model):
        frame, result = run(tmp_path, cell_of("layer_swap"), pair(model, model))
    np.testing.assert_allclose(frame["outcome"], frame["recipient"], atol=1e-6)
    assert frame["effect"].isna().all()
    assert result.metrics["prompts_with_effect"] == 0
    assert result.metrics["base_into_sft_window_effect"] is None


def test_batches_and_placement_do_not_matter(tmp_path: Path) -> None:
    base, sft = load(), load(seed=2)
    whole, _ = run(tmp_path / "a", cell_of("layer_swap", batch_tokens=10_000, window=2), pair(base, sft))
    single, _ = run(tmp_path / "b", cell_of("layer_swap", batch_tokens=1, window=2), pair(base, sft))
    apart, _ = run(tmp_path / "c", cell_of("layer_swap", batch_tokens=10_000, window=2), pair(base, sft, apart=True))
    pd.testing.assert_frame_equal(whole, single, rtol=1e-3, atol=1e-5)
    pd.testing.assert_frame_equal(whole, apart, rtol=0, atol=0)
    assert list(whole["prompt"].unique()) == [0, 1, 2]
    assert list(whole["span"].unique()) == list(SPANS)


def test_a_stopped_cell_goes_on_and_ends_with_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, models = cell_of("layer_swap", batch_tokens=1), pair(load(), load(seed=2))
    run(tmp_path / "whole", cell, models)
    with (
        opened(tmp_path / "cut", cell, stop_after=1) as context,
        pytest.raises(Preempted, match="asked to stop after 1 of 3 chunks of layer_swap"),
    ):
        interventions.run(context, models)
    capsys.readouterr()
    run(tmp_path / "cut", cell, models)
    assert capsys.readouterr().out.count("chunk layer_swap-") == 2
    digests = [finished_cell(tmp_path / at, cell).record.artefacts["layer_swap"].sha256 for at in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_models_are_left_as_they_were_also_after_a_failure(tmp_path: Path) -> None:
    base, sft = load(), load(seed=2)
    with untouched(base, sft):
        run(tmp_path / "whole", cell_of("layer_swap"), pair(base, sft))
    spoilt = changed(base, lambda model: model.model.layers[0].mlp.down_proj.weight.fill_(float("inf")))
    with (
        untouched(base, spoilt),
        opened(tmp_path / "spoilt", cell_of("layer_swap")) as context,
        pytest.raises(InvalidResult, match="of an intervention is not finite"),
    ):
        interventions.run(context, pair(base, spoilt))


def test_blocks_that_cannot_be_exchanged_are_refused_by_name(tmp_path: Path) -> None:
    base = load()
    other = changed(base, lambda model: model.config.rope_parameters.update(rope_theta=5e5))
    shallow = changed(base, lambda model: model.model.layers.__delitem__(1))
    for sft, words in (
        (other, "blocks cannot be exchanged between models whose rope_parameters differs"),
        (load("tiny-qwen2"), "blocks cannot be exchanged between models of different class or width"),
        (shallow, "layer_swap needs models of one depth; got 1; valid: 2; next: leave it out of causal.interventions"),
    ):
        with (
            untouched(base, sft),
            opened(tmp_path, cell_of("layer_swap")) as context,
            pytest.raises(ModelError, match=words),
        ):
            interventions.run(context, pair(base, sft))
