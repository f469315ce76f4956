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
from nullarm.models.anatomy import anatomy
from nullarm.protocols.residual.capture.pair_models import Loaded, PairModels
from nullarm.protocols.residual.causal import interventions
from nullarm.protocols.residual.causal.tables import DIRECTIONS

LAST = 1
"""The last layer of the tiny models."""


def last_position(frame: pd.DataFrame) -> pd.Series[bool]:
    return frame["position"] == frame.groupby("prompt")["position"].transform("max")


def by_hand(recipient: Any, ids: torch.Tensor, layer: int, position: int, residual: torch.Tensor) -> torch.Tensor:
    """Next-token logits of the whole model, one residual replaced by a hook written out."""
    blocks = recipient.blocks

    def on_output(module: Any, args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden = hidden.clone()
        hidden[0, position] = residual
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    def on_input(module: Any, args: Any) -> Any:
        hidden = args[0].clone()
        hidden[0, position] = residual
        return (hidden, *args[1:])

    handle = (
        blocks[0].register_forward_pre_hook(on_input) if layer < 0 else blocks[layer].register_forward_hook(on_output)
    )
    try:
        with torch.no_grad():
            found: torch.Tensor = recipient.model(input_ids=ids, use_cache=False).logits[0, -1].double()
            return found
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gpt2"])
def test_every_number_is_that_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    models = pair(load(name, 1), load(name, 2))
    prompt = PROMPTS[1]
    frame, _ = run(tmp_path, cell_of("patching", prompts=(prompt,)), models)
    tokenizer = models.base.tokenizer
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    target, foil = (tokenizer(text)["input_ids"][0] for text in ("red", "blue"))
    logits, streams = {}, {}
    for side in ("base", "sft"):
        parts = models.of(side).anatomy
        with torch.no_grad():
            found = parts.model(input_ids=ids, output_hidden_states=True, use_cache=False)
        logits[side], streams[side] = found.logits[0, -1].double(), found.hidden_states
    assert len(frame) == 2 * 2 * ids.shape[1] + 2 * ids.shape[1]  # two ways × (layers −1 and 0 and 1) × positions
    for row in frame[frame["layer"] < LAST].to_dict("records"):  # the library norms the last hidden state
        donor, recipient = DIRECTIONS[row["direction"]]
        layer, position = row["layer"], row["position"]
        z = by_hand(models.of(recipient).anatomy, ids, layer, position, streams[donor][layer + 1][0, position])
        difference = {side: float(one[target] - one[foil]) for side, one in (*logits.items(), ("now", z))}
        gap = difference[donor] - difference[recipient]
        assert row["outcome"] == pytest.approx(difference["now"], abs=2e-5)
        assert row["recipient"] == pytest.approx(difference[recipient], abs=2e-5)
        assert row["donor"] == pytest.approx(difference[donor], abs=2e-5)
        assert row["effect"] == pytest.approx((difference["now"] - difference[recipient]) / gap, abs=2e-4)
        for column, of, against in (
            ("kl_donor", logits[donor], z),
            ("kl_recipient", logits[recipient], z),
            ("kl_before", logits[donor], logits[recipient]),
        ):
            p, q = of.log_softmax(-1), against.log_softmax(-1)
            assert row[column] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)


@pytest.fixture
def planted() -> PairModels:
    """The models differ in block 1 and in nothing else."""
    base = load()
    return pair(base, changed(base, other_block(1)))


def test_the_last_residual_of_the_last_layer_is_the_donors_outcome(tmp_path: Path, planted: PairModels) -> None:
    frame, _ = run(tmp_path, cell_of("patching"), planted)
    here = frame[(frame["layer"] == LAST) & last_position(frame)]
    assert sorted(here["direction"].unique()) == sorted(DIRECTIONS)
    assert len(here) == 2 * len(PROMPTS)
    np.testing.assert_allclose(here["outcome"], here["donor"], atol=1e-5)
    np.testing.assert_allclose(here["effect"], 1.0, atol=1e-4)
    np.testing.assert_allclose(here["kl_donor"], 0.0, atol=1e-6)
    assert (here["kl_before"] > 1e-4).all()


def test_a_residual_from_before_the_change_does_nothing(tmp_path: Path, planted: PairModels) -> None:
    frame, result = run(tmp_path, cell_of("patching"), planted)
    idle = frame[(frame["layer"] < LAST) | ~last_position(frame)]
    np.testing.assert_allclose(idle["outcome"], idle["recipient"], atol=1e-5)
    np.testing.assert_allclose(idle["effect"], 0.0, atol=1e-4)
    assert result.metrics["base_into_sft_half_layer"] == result.metrics["sft_into_base_half_layer"] == LAST
    assert result.metrics["prompts"] == result.metrics["prompts_with_effect"] == len(PROMPTS)
    assert abs(float(result.metrics["base_into_sft_early_effect"] or 0)) < 1e-4


def test_a_changed_embedding_is_carried_by_its_position_at_first(tmp_path: Path) -> None:
    base = load()
    first = base.tokenizer(PROMPTS[0])["input_ids"][2]
    sft = changed(base, lambda model: model.get_input_embeddings().weight[first].mul_(-1))
    frame, result = run(tmp_path, cell_of("patching", prompts=PROMPTS[:1]), pair(base, sft))
    embedded = frame[frame["layer"] == -1]
    np.testing.assert_allclose(embedded[embedded["position"] == 2]["effect"], 1.0, atol=1e-4)
    np.testing.assert_allclose(embedded[embedded["position"] != 2]["effect"], 0.0, atol=1e-4)
    length = embedded["position"].max() + 1
    assert result.metrics["sft_into_base_early_layer"] in (-1, 0)
    assert result.metrics["sft_into_base_early_position"] == 2 - (length - 1)


def test_a_model_paired_with_itself_changes_nothing(tmp_path: Path) -> None:
    model = load()
    frame, result = run(tmp_path, cell_of("patching"), pair(model, model))
    np.testing.assert_allclose(frame["outcome"], frame["recipient"], atol=1e-5)
    np.testing.assert_allclose(frame[["kl_donor", "kl_recipient", "kl_before"]], 0.0, atol=1e-6)
    assert finished_cell(tmp_path, cell_of("patching")).table("patching")["effect"].null_count == len(frame)
    assert result.metrics["prompts_with_effect"] == 0
    assert {v for k, v in result.metrics.items() if not k.startswith("prompts")} == {None}


def test_batches_and_placement_do_not_matter(tmp_path: Path) -> None:
    base, sft = load(), load(seed=2)
    whole, _ = run(tmp_path / "a", cell_of("patching", batch_tokens=10_000), pair(base, sft))
    single, _ = run(tmp_path / "b", cell_of("patching", batch_tokens=1), pair(base, sft))
    apart, _ = run(tmp_path / "c", cell_of("patching", batch_tokens=10_000), pair(base, sft, apart=True))
    pd.testing.assert_frame_equal(whole, single, rtol=1e-3, atol=1e-5)
    pd.testing.assert_frame_equal(whole, apart, rtol=0, atol=0)


def test_half_precision_gives_no_negative_divergence_and_no_effect_of_rounding(tmp_path: Path) -> None:
    models = [changed(load(seed=seed), lambda model: model.to(torch.bfloat16)) for seed in (1, 1)]
    frame, result = run(tmp_path, cell_of("patching", dtype="bfloat16"), pair(*models))
    assert (frame[["kl_donor", "kl_recipient", "kl_before"]] >= 0).all(axis=None)
    assert result.metrics["prompts_with_effect"] == 0
    np.testing.assert_allclose(frame["outcome"], frame["recipient"], atol=0.1)


def test_a_stopped_cell_goes_on_and_ends_with_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, models = cell_of("patching"), pair(load(), load(seed=2))
    run(tmp_path / "whole", cell, models)
    with (
        opened(tmp_path / "cut", cell, stop_after=2) as context,
        pytest.raises(Preempted, match="asked to stop after 2 of 3 chunks of patching"),
    ):
        interventions.run(context, models)
    capsys.readouterr()
    run(tmp_path / "cut", cell, models)
    assert capsys.readouterr().out.count("chunk patching-") == 1
    digests = [finished_cell(tmp_path / at, cell).record.artefacts["patching"].sha256 for at in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_prompts_of_the_same_tokens_have_chunks_of_their_own(tmp_path: Path) -> None:
    frame, _ = run(tmp_path, cell_of("patching", prompts=("a hat", "a hat")), pair(load(), load(seed=2)))
    assert sorted(frame["prompt"].unique()) == [0, 1]


def test_models_are_left_as_they_were(tmp_path: Path) -> None:
    models = pair(load(), load(seed=2))
    with untouched(models.base, models.sft):
        run(tmp_path, cell_of("patching"), models)


def test_models_are_left_as_they_were_when_a_number_is_not_finite(tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")

    base = load()
    models = pair(base, changed(base, spoil))
    with (
        untouched(models.base, models.sft),
        opened(tmp_path, cell_of("patching")) as context,
        pytest.raises(InvalidResult, match="of an intervention is not finite; got nan; next: try dtype: float32"),
    ):
        interventions.run(context, models)


def test_models_are_left_as_they_were_when_a_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair(load(), load(seed=2))
    norm = type(models.sft.anatomy.final_norm)
    calls: list[int] = []
    forward = norm.forward

    def fail_later(self: Any, hidden: torch.Tensor) -> Any:
        calls.append(1)
        if len(hidden) > 1 and len(calls) > 30:
            raise RuntimeError("planned")
        return forward(self, hidden)

    with untouched(models.base, models.sft), opened(tmp_path, cell_of("patching")) as context:
        monkeypatch.setattr(norm, "forward", fail_later)
        with pytest.raises(RuntimeError, match="planned"):
            interventions.run(context, models)


def narrower(loaded: Loaded) -> Loaded:
    model = loaded.anatomy.model
    config = type(model.config)(**{**model.config.to_dict(), "hidden_size": 16})
    return Loaded(anatomy(type(model)(config).eval()), loaded.tokenizer)


def test_models_of_different_shape_are_refused_by_name(tmp_path: Path) -> None:
    base = load()
    shallow = changed(base, lambda model: model.model.layers.__delitem__(1))
    for other, words in (
        (shallow, "patching needs models of one depth; got 1; valid: 2; next: leave it out of causal.interventions"),
        (narrower(base), "patching needs models of one width; got 16; valid: 32"),
    ):
        with opened(tmp_path, cell_of("patching")) as context, pytest.raises(ModelError, match=words):
            interventions.run(context, pair(base, other))
