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
    finished_capture,
    finished_cell,
    load,
    opened,
    pair,
    run,
    untouched,
)
from torch import Tensor

from nullarm.errors import ModelError, Preempted
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.causal import interventions
from nullarm.protocols.residual.causal.steering import additions, with_control
from nullarm.protocols.residual.causal.tables import MEAN_DIFFERENCE, RANDOM

DIRECTIONS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
"""Of layers −1, 0 and 1."""


def steer(root: Path, models: PairModels, direction: Tensor = DIRECTIONS, **asked: Any) -> tuple[pd.DataFrame, Any]:
    return run(root, cell_of("steering", **asked), models, {"capture": finished_capture(root, {"base-sft": direction})})


@pytest.fixture
def planted() -> tuple[PairModels, Tensor]:
    """A base and one that differs by a constant in the residual behind the last block; and that constant by layer."""
    base = load("tiny-gpt2")
    added = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    sft = changed(base, lambda model: model.transformer.h[1].mlp.c_proj.bias.add_(added))
    return pair(base, sft), torch.stack([torch.zeros(32), torch.zeros(32), added])


def test_the_difference_itself_makes_the_fine_tuned_model(tmp_path: Path, planted: tuple[PairModels, Tensor]) -> None:
    frame, result = steer(tmp_path, *planted)
    here = frame[(frame["direction"] == MEAN_DIFFERENCE) & (frame["layer"] == 1) & (frame["strength"] == 1.0)]
    assert len(here) == len(PROMPTS)
    np.testing.assert_allclose(here["outcome"], here["donor"], atol=1e-5)
    np.testing.assert_allclose(here["kl_donor"], 0.0, atol=1e-6)
    np.testing.assert_allclose(here["added_norm"], float(planted[1][2].norm()), rtol=1e-5)
    others = frame[(frame["layer"] == 1)].drop(here.index)
    assert (others["kl_donor"] > 1e-3).all()
    assert result.metrics["layer"] == 1
    assert result.metrics["strength"] == 1.0
    assert result.metrics["effect"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["kl"] < 1e-6 < result.metrics["kl_before"]
    assert result.metrics["random_kl"] > 1e-3


def test_a_direction_of_no_length_and_a_strength_of_zero_change_nothing(
    tmp_path: Path, planted: tuple[PairModels, Tensor]
) -> None:
    frame, _ = steer(tmp_path, *planted, strengths=[0.0, 1.0])
    idle = frame[(frame["layer"] < 1) | (frame["strength"] == 0.0)]
    assert (idle["added_norm"] == 0).all()
    np.testing.assert_allclose(idle["outcome"], idle["recipient"], atol=1e-5)
    np.testing.assert_allclose(idle["kl_donor"], idle["kl_before"], atol=1e-5)
    assert {MEAN_DIFFERENCE, RANDOM} == set(idle["direction"])


def test_every_treated_row_has_its_control_of_the_same_size(tmp_path: Path) -> None:
    frame, _ = steer(tmp_path, pair(load(), load(seed=2)), strengths=[-2.0, 0.5])
    keys = ["prompt", "layer", "strength"]
    treated, control = (
        frame[frame["direction"] == name].set_index(keys).sort_index() for name in (MEAN_DIFFERENCE, RANDOM)
    )
    assert treated.index.equals(control.index)
    assert len(treated) == len(PROMPTS) * 3 * 2
    np.testing.assert_allclose(treated["added_norm"], control["added_norm"], rtol=1e-5)
    norms = DIRECTIONS.norm(dim=-1)
    for row in treated.reset_index().to_dict("records"):
        assert row["added_norm"] == pytest.approx(abs(row["strength"]) * float(norms[row["layer"] + 1]), rel=1e-5)
    assert (treated["outcome"] != control["outcome"]).all()


def test_the_control_is_drawn_for_each_layer_from_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        return with_control(DIRECTIONS, torch.Generator().manual_seed(seed))[RANDOM]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.allclose(drawn(0), drawn(1))
    unit = drawn(0) / drawn(0).norm(dim=-1, keepdim=True)
    assert ((unit @ unit.T).fill_diagonal_(0).abs() < 0.9).all()
    torch.testing.assert_close(drawn(0).norm(dim=-1), DIRECTIONS.norm(dim=-1))


def test_what_is_added_goes_to_its_row_from_the_first_position_on() -> None:
    sites = [("a", 0, 2.0), ("b", 1, 1.0), ("b", 0, -1.0)]
    directions = {"a": DIRECTIONS, "b": 10 * DIRECTIONS}
    edits = additions(sites, directions, first=1)
    assert sorted(edits) == [0, 1]
    changed_at_0 = edits[0](torch.zeros(3, 4, 32))
    assert not changed_at_0[:, 0].any()
    assert not changed_at_0[1].any()
    torch.testing.assert_close(changed_at_0[0, 1:], (2 * DIRECTIONS[1]).expand(3, -1))
    torch.testing.assert_close(changed_at_0[2, 1:], (-10 * DIRECTIONS[1]).expand(3, -1))
    given = torch.ones(3, 4, 32)
    edits[1](given)
    assert torch.equal(given, torch.ones(3, 4, 32))


def test_the_only_position_of_a_prompt_is_steered(tmp_path: Path) -> None:
    frame, _ = steer(tmp_path, pair(load(), load(seed=2)), prompts=("a",))
    assert (frame["outcome"] - frame["recipient"]).abs().gt(1e-4).all()


def test_rows_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    models, prompt = pair(load(), load(seed=2)), PROMPTS[0]
    frame, _ = steer(tmp_path, models, prompts=(prompt,))
    model = models.base.anatomy.model
    ids = torch.tensor([models.base.tokenizer(prompt)["input_ids"]])
    target, foil = (models.base.tokenizer(text)["input_ids"][0] for text in ("red", "blue"))
    treated = frame[frame["direction"] == MEAN_DIFFERENCE]
    for row in treated.to_dict("records"):
        added = torch.zeros(1, ids.shape[1], 32)
        added[0, 1:] = row["strength"] * DIRECTIONS[row["layer"] + 1]
        at = model.model.embed_tokens if row["layer"] < 0 else model.model.layers[row["layer"]]
        handle = at.register_forward_hook(lambda module, args, output, more=added: output + more)
        with torch.no_grad():
            z = model(input_ids=ids, use_cache=False).logits[0, -1]
        handle.remove()
        assert row["outcome"] == pytest.approx(float(z[target] - z[foil]), abs=1e-4)


def test_a_model_paired_with_itself_has_no_effect_and_a_control_of_none(tmp_path: Path) -> None:
    model = load()
    frame, result = steer(tmp_path, pair(model, model), torch.zeros(3, 32))
    np.testing.assert_allclose(frame["outcome"], frame["recipient"], atol=1e-5)
    assert frame["effect"].isna().all()
    assert result.metrics["effect"] is result.metrics["random_effect"] is None
    assert result.metrics["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_stopped_cell_goes_on_and_ends_with_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, models = cell_of("steering"), pair(load(), load(seed=2))
    needs = {"capture": finished_capture(tmp_path, {"base-sft": DIRECTIONS})}
    run(tmp_path / "whole", cell, models, needs)
    with opened(tmp_path / "cut", cell, needs, stop_after=1) as context:
        with pytest.raises(Preempted, match="asked to stop after 1 of 3 chunks of steering"):
            interventions.run(context, models)
    capsys.readouterr()
    run(tmp_path / "cut", cell, models, needs)
    assert capsys.readouterr().out.count("chunk steering-") == 2
    digests = [finished_cell(tmp_path / at, cell).record.artefacts["steering"].sha256 for at in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_models_are_left_as_they_were_also_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair(load(), load(seed=2))
    with untouched(models.base, models.sft):
        steer(tmp_path / "whole", models)
    no_edit = "nullarm.protocols.residual.causal.steering._add"
    monkeypatch.setattr(no_edit, lambda *_: lambda hidden: hidden + torch.ones(7))
    with untouched(models.base, models.sft), pytest.raises(RuntimeError, match="must match the size"):
        steer(tmp_path / "spoilt", models)


def test_a_direction_of_another_shape_is_refused(tmp_path: Path) -> None:
    words = r"not of the base model's shape; got \(2, 32\); valid: \(3, 32\)"
    with pytest.raises(ModelError, match=words):
        steer(tmp_path, pair(load(), load(seed=2)), DIRECTIONS[:2])


def test_the_direction_is_that_of_the_models_as_they_are(tmp_path: Path) -> None:
    directions = {"BB-BS": DIRECTIONS + 1, "BB-SS": DIRECTIONS, "BS-SS": DIRECTIONS + 2}
    capture = finished_capture(tmp_path, directions, {name: (name[:2], name[3:]) for name in directions})
    torch.testing.assert_close(interventions.mean_difference(capture), DIRECTIONS)


@pytest.mark.parametrize(
    ("directions", "comparisons"),
    [({"BB-BS": DIRECTIONS}, {"BB-BS": ("BB", "BS")}), ({"BB-BS": DIRECTIONS}, {"BB-SS": ("BB", "SS")})],
    ids=["not compared", "no direction"],
)
def test_a_capture_without_that_comparison_is_refused(
    tmp_path: Path, directions: dict[str, Tensor], comparisons: dict[str, tuple[str, str]]
) -> None:
    capture = finished_capture(tmp_path, directions, comparisons)
    with pytest.raises(ModelError, match=r"steering needs the mean difference .* got \['BB-BS'\]; valid: a capture"):
        interventions.mean_difference(capture)
