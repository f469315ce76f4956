"""Whole residual studies on tiny models: what is planted is found where it is, and nothing elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.errors import ModelError, StudyError
from nullarm.protocols.residual.report.hotspots import hotspots, layer_shares
from nullarm.protocols.residual.tables import CAPTURE, FACTORIAL_METRICS, PAIR_METRICS
from support.pairs import PROMPTS, capture_of, captured, other_embedding, residual_study, save_model, scale_block, table

MULTI = {"multi_pass": {"enabled": True}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "base": save_model(root / "base"),
        "block1": save_model(root / "block1", scale_block(1)),
        "block0": save_model(root / "block0", scale_block(0)),
        "embedding": save_model(root / "embedding", other_embedding),
        "other": save_model(root / "other", seed=2),
    }


def scalars(store: Any, arm: str) -> pd.DataFrame:
    frame: pd.DataFrame = table(store, arm, "scalars").to_pandas()
    return frame


@pytest.mark.parametrize(("planted", "layer"), [("block0", 0), ("block1", 1)])
def test_a_change_in_one_block_is_located_at_its_layer(
    tmp_path: Path, models: dict[str, str], planted: str, layer: int
) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models[planted]))
    found = capture_of(store, "tuned")
    assert layer_shares(found) == {-1: 0.0, 0: float(layer == 0), 1: float(layer == 1)}
    assert {spot.layer for spot in hotspots(found, "direct_diff", 3)} == {layer}
    conclusion = conclude(store)
    assert f"changed by itself: layer {layer} 100%" in conclusion.closing
    assert conclusion.analysis.primary.judgement.verdict == "CONFIRMED"
    report = conclusion.report.with_suffix(".md").read_text()
    assert "Hotspots" in report


def test_a_change_of_embeddings_shows_as_their_main_effect_only(tmp_path: Path, models: dict[str, str]) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models["embedding"], **MULTI))
    rows = scalars(store, "tuned")
    effects = rows[rows.kind == "factorial"]
    assert (effects.embedding_effect > 0).all()
    assert (effects.body_effect == 0).all()
    assert (effects.interaction == 0).all()
    assert np.allclose(effects.embedding_share, 1)
    pairs = rows[rows.kind == "pair"].groupby("record", sort=False)["js"].max()
    assert pairs["BB-BS"] == pairs["SB-SS"] == 0
    assert pairs["BB-SB"] == pairs["BS-SS"] == pairs["BB-SS"] > 0
    assert layer_shares(capture_of(store, "tuned")) == {-1: 1.0, 0: 0.0, 1: 0.0}


def test_a_change_of_a_block_shows_as_the_main_effect_of_the_body_only(tmp_path: Path, models: dict[str, str]) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models["block1"], **MULTI))
    rows = scalars(store, "tuned")
    effects = rows[(rows.kind == "factorial") & (rows.layer == 1)]
    assert (effects.embedding_effect == 0).all()
    assert np.allclose(effects.body_share, 1)
    untouched = rows[(rows.kind == "factorial") & (rows.layer == 0)]
    assert (untouched.body_effect == 0).all()
    assert untouched.body_share.isna().all()  # nothing changed there, so nothing has a share in it


@pytest.mark.parametrize("more", [{}, MULTI, {"lens": "raw"}, {"dtype": "bfloat16"}], ids=str)
def test_a_model_does_not_differ_from_itself(tmp_path: Path, models: dict[str, str], more: dict[str, Any]) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models["other"], **more))
    rows = scalars(store, "same_model")
    pairs = rows[rows.kind == "pair"]
    for metric in ("norm_diff", "relative_diff", "direct_diff", "kl_div", "kl_reverse", "js", "entropy_diff"):
        assert (pairs[metric].dropna() == 0).all(), metric
    assert np.allclose(pairs.cosine, 1)
    assert (pairs.overlap.dropna() == 1).all()
    capture = capture_of(store, "same_model").json(CAPTURE)
    assert set(capture["null"].values()) == {0.0}
    tuned = scalars(store, "tuned")
    assert (tuned.kl_div.dropna() >= 0).all()
    assert (tuned.cosine.dropna().abs() <= 1).all()
    assert (tuned.js.dropna() <= np.log(2) + 1e-6).all()
    assert tuned[tuned.kind == "pair"].js.max() > 0.01


def test_an_instrument_that_makes_things_up_makes_the_study_invalid(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nullarm.protocols.residual.cells.self_divergence", lambda capture, batch: {"js": 3e-5, "kl_div": 0.0}
    )
    store = lay_down(prepare(residual_study(models["base"], models["other"])), tmp_path / "run")
    result = run(store, InlineEngine())
    assert result.stopped_by is not None
    assert result.stopped_by.record.reason == (
        "a model differs from itself: js = 3e-05, above null_epsilon = 1e-06"
    )  # fmt: skip


def test_what_is_missing_is_null_and_nothing_else_is(tmp_path: Path, models: dict[str, str]) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models["other"], **MULTI))
    rows = scalars(store, "tuned")
    prompts = table(store, "tuned", "prompts").to_pandas().set_index("prompt")
    last = rows.prompt.map(lambda p: len(prompts.ids[p]) - 1) == rows.position
    blocks = rows.layer >= 0
    for kind, metrics in (("pair", PAIR_METRICS), ("factorial", FACTORIAL_METRICS)):
        mine = rows.kind == kind
        for metric in metrics:
            everywhere = metric in ("cosine", "norm_diff", "relative_diff", "direct_diff", *FACTORIAL_METRICS)
            expected = mine & (True if everywhere else blocks) & (~last if metric == "loss_diff" else True)
            assert (rows[metric].notna() == expected).all(), metric


def test_tables_have_one_row_per_prompt_variant_record_layer_and_position(
    tmp_path: Path, models: dict[str, str]
) -> None:
    more = {"prompt_variants": ["identity", "mirror_halves"], "tracked": {"ids": [5, 3]}}
    store = captured(tmp_path / "run", residual_study(models["base"], models["other"], **MULTI, **more))
    rows, read = scalars(store, "tuned"), table(store, "tuned", "prompts").to_pandas()
    keys = ["prompt", "variant", "kind", "record", "layer", "position"]
    assert not rows.duplicated(keys).any()
    positions = sum(len(ids) for ids in read.ids)
    assert len(rows) == positions * 3 * (4 + 6 + 1)
    assert len(read) == len(PROMPTS) * 2
    top = table(store, "tuned", "topk").to_pandas()
    assert len(top) == positions * 2 * (4 + 6 * 2)
    assert set(top.direction) == {"top", "increased", "decreased"}
    assert (top["values"].map(len) == 5).all()
    tracked = table(store, "tuned", "tracked").to_pandas()
    assert len(tracked) == positions * 2 * 4 * 2
    assert tracked.token_id.iloc[:2].tolist() == [5, 3]
    lengths = read.ids.map(len)
    assert lengths.is_monotonic_increasing
    items = table(store, "tuned", "items").to_pandas()
    assert items.cluster.nunique() == len(PROMPTS)
    assert len(items) == len(PROMPTS) * 2


def test_batches_do_not_change_what_is_found(tmp_path: Path, models: dict[str, str]) -> None:
    found = []
    for batch_tokens in (1, 4096):
        study = residual_study(models["base"], models["other"], batch_tokens=batch_tokens)
        store = captured(tmp_path / str(batch_tokens), study)
        found.append(scalars(store, "tuned"))
    keys = ["prompt", "variant", "kind", "record", "layer", "position"]
    assert found[0][keys].equals(found[1][keys])
    numbers = [frame.drop(columns=keys).to_numpy(np.float64) for frame in found]
    assert np.allclose(numbers[0], numbers[1], atol=2e-4, rtol=1e-4, equal_nan=True)


def test_swaps_are_comparisons_of_their_own(tmp_path: Path, models: dict[str, str]) -> None:
    swap = {"name": "base_head", "sft": {"unembedding_source": "base"}}
    store = captured(
        tmp_path / "run", residual_study(models["base"], models["block1"], embedding_variants=[swap])
    )  # fmt: skip
    rows = scalars(store, "tuned")
    names = rows[rows.kind == "pair"].record.unique().tolist()
    assert names == ["base-sft", "base_head"]
    plain, swapped = (rows[rows.record == name].js.dropna().to_numpy() for name in names)
    assert np.allclose(plain, swapped)  # the heads are the same: exchanging them changes nothing


def test_every_residual_can_be_kept(tmp_path: Path, models: dict[str, str]) -> None:
    from safetensors.numpy import load_file

    study = residual_study(models["base"], models["block1"], keep_residuals=True, batch_tokens=12)
    store = captured(tmp_path / "run", study)
    files = sorted(capture_of(store, "tuned").artefact("residuals").glob("*.safetensors"))
    assert len(files) > 1
    tensors = load_file(files[0])
    assert set(tensors) == {"base_embedding.base_body", "sft_embedding.sft_body"}
    assert tensors["base_embedding.base_body"].shape[0] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factors.pair.more": {}}, "'more' is an arm without a pair"),
        ({"parameters.pairs.more": {"base": "builtin:world", "sft": "builtin:world"}}, "a pair without an arm"),
        ({"factors.pair.tuned.replicates": 2}, "arm 'tuned': nothing is drawn at random in a trained pair"),
    ],
)  # fmt: skip
def test_arms_and_pairs_have_to_match(models: dict[str, str], change: dict[str, Any], words: str) -> None:
    data = residual_study(models["base"], models["other"]).model_dump(mode="json")
    for dotted, value in change.items():
        *path, last = dotted.split(".")
        holder = data
        for key in path:
            holder = holder[key]
        holder[last] = value
    with pytest.raises(StudyError, match=words):
        prepare(type(residual_study("builtin:world", "builtin:world")).model_validate(data))


def test_a_tuned_lens_is_trained_once_per_model_and_used(tmp_path: Path, models: dict[str, str]) -> None:
    more = {"lens": "tuned", "tuned_lens": {"steps": 12, "batch_size": 4, "learning_rate": 0.02}}
    store = captured(tmp_path / "run", residual_study(models["base"], models["other"], **more))
    tuned = [cell for cell in store.plan if cell.stage == "tune_lens"]
    assert len(tuned) == 2  # of base and fine-tuned model; the control reads the base's
    for cell in tuned:
        finished = store.finished(cell.id)
        assert finished is not None
        assert finished.record.metrics["divergence"] < finished.record.metrics["divergence_untrained"]  # type: ignore[operator]
    plain = captured(tmp_path / "plain", residual_study(models["base"], models["other"]))
    through, directly = (scalars(s, "tuned").query("kind == 'run' and record == 'base'") for s in (store, plain))
    first, last = (through.layer == 0).to_numpy(), (through.layer == 1).to_numpy()
    assert not np.allclose(through.entropy[first], directly.entropy[first], atol=1e-3)
    assert np.allclose(through.entropy[last], directly.entropy[last], atol=1e-5)  # the last layer needs no translator


def test_noise_is_as_large_as_the_change_and_drawn_anew_for_each_replicate(
    tmp_path: Path, models: dict[str, str]
) -> None:
    study = residual_study(models["base"], models["block1"])
    data = study.model_dump(mode="json")
    data["factors"]["pair"]["noise"] = {"role": "control", "null": "any change does", "replicates": 2}
    data["parameters"]["pairs"]["noise"] = {
        "base": models["base"], "sft": models["block1"], "sft_weights": "matched_noise"
    }  # fmt: skip
    store = captured(tmp_path / "run", type(study).model_validate(data))
    noise = [cell for cell in store.plan if cell.arm == "noise"]
    values = [store.finished(cell.id).record.metrics["js"] for cell in noise]  # type: ignore[union-attr]
    assert values[0] != values[1]
    layers = layer_shares(store.finished(noise[0].id))  # type: ignore[arg-type]
    assert layers == {-1: 0.0, 0: 0.0, 1: 1.0}  # what training left alone, noise leaves alone


def test_a_device_map_changes_nothing_but_places(tmp_path: Path, models: dict[str, str]) -> None:
    plain = residual_study(models["base"], models["other"])
    mapped = residual_study(models["base"], models["other"], model_kwargs={"device_map": {"": "cpu"}})
    assert prepare(plain).plan.hash == prepare(mapped).plan.hash
    one, other = (scalars(captured(tmp_path / n, study), "tuned") for n, study in (("a", plain), ("b", mapped)))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_study_without_lists_and_tracked_tokens_runs_whole(tmp_path: Path, models: dict[str, str]) -> None:
    store = captured(tmp_path / "run", residual_study(models["base"], models["other"], top_k=0))
    assert len(table(store, "tuned", "topk")) == len(table(store, "tuned", "tracked")) == 0
    assert scalars(store, "tuned").overlap.isna().all()
    assert "js" in conclude(store).closing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"analysis.metric": "jss"}, r"analysis.metric 'jss' is not measured.*did you mean 'js'.*valid: js, js_final"),
        ({"analysis.metric": "body_share"}, "analysis.metric 'body_share' is not measured"),
        ({"parameters.prompt_variants": ["identiti"]}, "identity"),
        ({"parameters.prompt_variant_options": {"nope": {}}}, "no prompt variant 'nope'"),
        ({"parameters.prompts": ["a", " "]}, "prompt 1 is empty"),
        ({"parameters.prompts": []}, "there are no prompts"),
        ({"parameters.prompt_file": "x.txt"}, "not both"),
        ({"parameters.pairs.tuned": {"base": "a/b", "sft": "a/b", "sft_weights": "matched_noise"}}, "that differs"),
    ],
)
def test_what_is_wrong_shows_when_the_study_is_planned(
    models: dict[str, str], change: dict[str, Any], words: str
) -> None:
    study = residual_study(models["base"], models["other"])
    data = study.model_dump(mode="json")
    for dotted, value in change.items():
        *path, last = dotted.split(".")
        holder = data
        for key in path:
            holder = holder[key]
        holder[last] = value
    with pytest.raises(StudyError, match=words):
        prepare(type(study).model_validate(data))


def test_an_architecture_that_is_not_known_is_refused_by_the_plan(tmp_path: Path, models: dict[str, str]) -> None:
    directory = tmp_path / "opt"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "opt", "architectures": ["OPTForCausalLM"]}')
    words = (
        r"the parts of a model of this class are not known; got 'OPTForCausalLM'; valid: LlamaForCausalLM.*CONTRIBUTING"
    )
    with pytest.raises(ModelError, match=words):
        prepare(residual_study(models["base"], str(directory)))


def test_a_batch_that_was_not_finished_says_what_failed_and_what_is_left(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    study = residual_study(models["base"], models["other"])
    store = lay_down(prepare(study), tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("nullarm.protocols.residual.cells.load_pair", full)
        assert len(run(store, InlineEngine(), entries=["tuned"]).failed) == 1
    closing = conclude(store).closing
    assert "seed 0 · tuned: FAILED (OutOfMemoryError: CUDA out of memory)" in closing
    assert "not captured yet: seed 0 · same_model" in closing
    assert not run(store, InlineEngine()).failed
    assert "FAILED" not in conclude(store).closing
