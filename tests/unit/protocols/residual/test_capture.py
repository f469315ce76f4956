"""Capture against a plain reference on every supported architecture, and models that are as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import residual_reference as reference
import torch
from causal_trials import changed, load, other_block, untouched

from nullarm.models.shapes import SHAPES
from nullarm.protocols.residual.capture.batch import Capture
from nullarm.protocols.residual.capture.numbers import measure
from nullarm.protocols.residual.capture.pair_lens import lens_of
from nullarm.protocols.residual.capture.pair_models import PairModels
from nullarm.protocols.residual.capture.rows import scalars_table, topk_table, tracked_table
from nullarm.protocols.residual.reading.alignment import shared_vocabulary
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.reading.tokens import encode
from nullarm.protocols.residual.reading.variants import Variation
from nullarm.protocols.residual.runs import Passes, multi_pass, single_pass

TINY = sorted(name for name, shape in SHAPES.items() if name.startswith("tiny-"))
TEXTS = ("What is 3 + 4?", "Mia has a red hat.")
K, TRACKED = 4, (7, 3)


def pair_of(name: str, dtype: torch.dtype = torch.float32, *, apart: bool = False) -> PairModels:
    """A random model, and the same with a changed block and other embeddings."""
    base = load(name)
    sft = changed(base, other_block(1))
    with torch.no_grad():
        weight: torch.Tensor = sft.anatomy.model.get_input_embeddings().weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * weight.std() / 2)
    for loaded in (base, sft):
        loaded.anatomy.model.to(dtype)
    return PairModels(base, sft, torch.device("cpu"), apart)


def rows_of(models: PairModels) -> list[Row]:
    texts = [Variation(i, "identity", text) for i, text in enumerate(TEXTS)]
    encoded = encode(models.base.tokenizer, texts)
    return [Row(e, e, tuple(range(len(e.ids))), tuple(range(len(e.ids)))) for e in encoded]


def capture_of(models: PairModels, passes: Passes, kind: str = "norm") -> Capture:
    rows = [loaded.anatomy.head.out_features for loaded in (models.base, models.sft)]
    shared = shared_vocabulary(models.base.tokenizer, models.sft.tokenizer, *rows)
    lens = lens_of(models, shared, kind, None, top_k=K, tracked=TRACKED)
    return Capture(models, passes, lens, range(models.base.layers), same_tokens=True, direct_change=True)


def tables(capture: Capture, rows: Sequence[Row]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    (streams,) = capture.streams([rows])
    numbers = measure(capture, rows, streams)
    return scalars_table(numbers).to_pandas(), topk_table(numbers).to_pandas(), tracked_table(numbers).to_pandas()


@torch.no_grad()
def residuals(models: PairModels, run: Any, ids: Sequence[int]) -> list[torch.Tensor]:
    """[layers + 1] of [positions, d], through the library's own hidden states; the last one by a hook of its own."""
    body, kept = models.of(run.body).anatomy, []
    handle = body.blocks[-1].register_forward_hook(
        lambda module, args, output: kept.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    try:
        embeds = models.of(run.embedding).anatomy.embedding(torch.tensor([ids]))
        hidden = body.model(inputs_embeds=embeds, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        handle.remove()
    return [h[0] for h in hidden[:-1]] + [kept[0][0]]


@torch.no_grad()
def logits(models: PairModels, run: Any, h: torch.Tensor) -> torch.Tensor:
    body, head = models.of(run.body).anatomy, models.of(run.unembedding).anatomy
    return reference.logits_of(body.final_norm(h), head.head.weight, head.head.bias, head.softcap)


@pytest.mark.parametrize("name", TINY)
def test_every_value_is_that_of_the_formula(name: str) -> None:
    models = pair_of(name)
    passes, rows = multi_pass(), rows_of(models)
    scalars, topk, tracked = tables(capture_of(models, passes), rows)
    for row in rows:
        ids = row.left.ids
        following = [*ids[1:], -1]
        streams = {run.name: residuals(models, run, ids) for run in passes.runs}
        for layer in range(-1, models.base.layers):
            here = scalars[(scalars.prompt == row.left.prompt) & (scalars.layer == layer)]
            at = {name: stream[layer + 1] for name, stream in streams.items()}
            below = {name: stream[layer] for name, stream in streams.items()} if layer >= 0 else {}
            read = {run.name: logits(models, run, at[run.name]) for run in passes.runs} if layer >= 0 else {}
            for run in passes.runs:
                mine = here[here.record == run.name]
                _near(mine.norm, [reference.norm(h) for h in at[run.name]])
                if layer < 0:
                    continue
                _near(
                    mine.norm_delta,
                    [reference.norm(a) - reference.norm(b) for a, b in zip(at[run.name], below[run.name], strict=True)],
                )
                _near(
                    mine.cosine_prev,
                    [reference.cosine(a, b) for a, b in zip(at[run.name], below[run.name], strict=True)],
                )
                _near(mine.entropy, reference.entropy(read[run.name]).tolist())
                _near(mine.loss, reference.loss(read[run.name], following))
                _ranks_agree(mine["rank"].tolist()[:-1], read[run.name], following[:-1])
                tops = _lists(topk, row, run.name, layer, "top")
                assert tops.indices.map(list).tolist() == reference.top(read[run.name], K)
                values = tracked[
                    (tracked.prompt == row.left.prompt) & (tracked.record == run.name) & (tracked.layer == layer)
                ]
                _near(values.logit, read[run.name][:, list(TRACKED)].flatten().tolist())
            for pair in passes.comparisons:
                mine = here[here.record == pair.name]
                left, right = at[pair.left], at[pair.right]
                both = list(zip(left, right, strict=True))
                _near(mine.cosine, [reference.cosine(a, b) for a, b in both])
                _near(mine.norm_diff, [reference.norm_diff(a, b) for a, b in both])
                _near(mine.relative_diff, [reference.relative_diff(a, b) for a, b in both])
                if layer < 0:
                    continue
                p, q = read[pair.left], read[pair.right]
                _near(mine.kl_div, reference.kl(q, p).tolist())
                _near(mine.kl_reverse, reference.kl(p, q).tolist())
                _near(mine.js, reference.js(p, q).tolist())
                _near(mine.overlap, reference.overlap(p, q, K))
                _near(mine.entropy_diff, (reference.entropy(q) - reference.entropy(p)).tolist())
                up = _lists(topk, row, pair.name, layer, "increased")
                _near(np.stack(up["values"].tolist()).flatten(), (q - p).topk(K).values.flatten().tolist())
                down = _lists(topk, row, pair.name, layer, "decreased")
                _near(np.stack(down["values"].tolist()).flatten(), (-(p - q).topk(K).values).flatten().tolist())
            effects = here[here.kind == "factorial"]
            expected = [
                reference.factorial(*vectors)
                for vectors in zip(*(at[n] for n in ("BB", "BS", "SB", "SS")), strict=True)
            ]
            for metric in expected[0]:
                _near(effects[metric], [values[metric] for values in expected])


def _lists(topk: pd.DataFrame, row: Row, record: str, layer: int, direction: str) -> pd.DataFrame:
    return topk[
        (topk.prompt == row.left.prompt)
        & (topk.record == record)
        & (topk.layer == layer)
        & (topk.direction == direction)
    ]


def _ranks_agree(ranks: Sequence[float], logits: torch.Tensor, following: Sequence[int]) -> None:
    """As the formula has it, except for logits that are the same in fp32."""
    for rank, row, token in zip(ranks, logits, following, strict=False):
        surely, perhaps = ((row > row[token] + slack).sum() + 1 for slack in (1e-5, -1e-5))
        assert surely <= rank <= perhaps


def _near(found: Any, expected: Sequence[float | None]) -> None:
    """Equal to 1e-5, absolutely below 1 and relatively above; missing where missing."""
    values = np.array([np.nan if value is None else value for value in expected])
    np.testing.assert_allclose(np.asarray(found, np.float64), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_nothing_is_out_of_its_range(name: str, dtype: torch.dtype) -> None:
    models = pair_of(name, dtype)
    scalars, _, _ = tables(capture_of(models, multi_pass()), rows_of(models))
    for metric in ("kl_div", "kl_reverse", "js", "entropy", "loss", "norm", "norm_diff"):
        values = scalars[metric].dropna()
        assert len(values)
        assert (values >= 0).all(), metric
    for metric in ("cosine", "cosine_prev"):
        assert scalars[metric].dropna().abs().max() <= 1
    assert scalars.js.max() <= np.float32(np.log(2))


def test_the_raw_lens_leaves_out_the_final_norm() -> None:
    models = pair_of("tiny-llama")
    run, row = single_pass().runs[0], rows_of(models)[0]
    scalars, _, _ = tables(capture_of(models, single_pass(), "raw"), rows_of(models))
    mine = scalars[(scalars.prompt == 0) & (scalars.record == "base") & (scalars.layer == 0)]
    h = residuals(models, run, row.left.ids)[1]
    _near(mine.entropy, reference.entropy(reference.logits_of(h, models.base.anatomy.head.weight)).tolist())


def test_one_model_at_a_time_gives_the_same() -> None:
    together, apart = pair_of("tiny-qwen2"), pair_of("tiny-qwen2", apart=True)
    found = [tables(capture_of(models, multi_pass()), rows_of(models)) for models in (together, apart)]
    for one, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_group_of_batches_is_measured_as_each_of_them_alone() -> None:
    models = pair_of("tiny-llama", apart=True)
    capture, rows = capture_of(models, multi_pass()), rows_of(models)
    batches = [[row] for row in rows]
    for batch, streams in zip(batches, capture.streams(batches), strict=True):
        (alone,) = capture.streams([batch])
        assert streams.keys() == alone.keys()
        assert all(torch.equal(streams[key], alone[key]) for key in alone)


@pytest.mark.parametrize("name", TINY)
def test_models_are_as_they_were(name: str) -> None:
    models = pair_of(name)
    with untouched(models.base, models.sft):
        tables(capture_of(models, multi_pass()), rows_of(models))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_models_are_as_they_were_after_an_exception(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair_of(name)
    capture, rows = capture_of(models, multi_pass()), rows_of(models)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    with untouched(models.base, models.sft):
        inside = type(models.sft.anatomy.blocks[1])
        with monkeypatch.context() as patched:
            patched.setattr(inside, "forward", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                capture.streams([rows])
        with pytest.raises(RuntimeError, match="stop here"), models.body("sft"):
            raise RuntimeError("stop here")


def test_a_touched_model_is_noticed() -> None:
    models = pair_of("tiny-llama")
    with pytest.raises(AssertionError), untouched(models.base), torch.no_grad():
        models.base.anatomy.head.weight[0, 0] += 1
    with pytest.raises(AssertionError), untouched(models.base):
        models.base.anatomy.blocks[0].register_forward_hook(lambda *_: None)
