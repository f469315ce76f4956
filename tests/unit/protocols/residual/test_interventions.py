from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bpes import CHAT_TEMPLATE, bpe
from causal_trials import PROMPTS, cell_of, changed, finished_cell, load, opened, pair, run

from nullarm.errors import ModelError
from nullarm.models.word_tokenizer import word_tokenizer
from nullarm.protocols.residual.capture.pair_models import Loaded, PairModels
from nullarm.protocols.residual.causal import interventions
from nullarm.protocols.residual.causal.tables import SETTING


def refused(root: Path, models: PairModels, words: str, **asked: Any) -> None:
    with opened(root, cell_of("patching", **asked)) as context, pytest.raises(ModelError, match=words):
        interventions.run(context, models)


def test_the_first_prompts_are_read_as_they_are() -> None:
    model = load()
    both = pair(model, model)
    assert [row.text for row in interventions.read_alike(cell_of("patching"), both)] == list(PROMPTS)
    assert [row.prompt for row in interventions.read_alike(cell_of("patching", first=2), both)] == [0, 1]


def test_prompts_begin_and_are_templated_as_the_cell_says() -> None:
    base, sft = (Loaded(load().anatomy, bpe()) for _ in range(2))
    sft.tokenizer.chat_template = CHAT_TEMPLATE  # which a base model often lacks
    (row,) = interventions.read_alike(cell_of("patching", prompts=("the cat",), add_bos=True), pair(base, sft))
    assert row.tokens[0] == "<bos>"
    (row,) = interventions.read_alike(cell_of("patching", prompts=("the cat",), chat_template=True), pair(base, sft))
    assert row.text == "<bos><user>the cat</user><answer>"


def test_what_was_read_is_handed_on(tmp_path: Path) -> None:
    cell, model = cell_of("patching"), load()
    run(tmp_path, cell, pair(model, load(seed=2)))
    setting = finished_cell(tmp_path, cell).json(SETTING)
    first = model.tokenizer("red")["input_ids"][0]
    assert setting["target"] == {"text": "red", "id": first, "token": model.tokenizer.convert_ids_to_tokens(first)}
    assert setting["tokens"]["0"] == model.tokenizer.tokenize(PROMPTS[0])
    assert setting["least_gap"] == 1e-3
    assert [note.split(" splits")[0] for note in setting["notes"]] == ["tracked text 'red'", "tracked text 'blue'"]


def test_tokenizers_that_read_a_prompt_differently_are_refused(tmp_path: Path) -> None:
    base = load()
    sft = Loaded(base.anatomy, word_tokenizer(64))
    text = word_tokenizer(64).decode([5, 6])
    words = (
        r"patching needs prompts that both models read as the same tokens, and they differ on prompt 0; got .*; valid: "
    )
    refused(tmp_path, pair(base, sft), words, prompts=(text,))


def test_tokens_that_are_no_outcome_are_refused(tmp_path: Path) -> None:
    model = load()
    refused(tmp_path, pair(model, model), "begin with the same token; got 'r'; valid: texts", target="rx", foil="ry")


def test_a_token_without_a_row_in_a_head_is_refused(tmp_path: Path) -> None:
    base = load()
    first = base.tokenizer("red")["input_ids"][0]
    sft = changed(base, lambda model: model.resize_token_embeddings(first))
    refused(
        tmp_path,
        pair(base, sft),
        f"first token of 'red' is not the same in both models; got 'ids {first} and {first}'; valid: ",
    )


def test_a_padded_vocabulary_is_compared_by_the_tokens_in_common(tmp_path: Path) -> None:
    base, sft = load(), load(seed=2)
    cell = cell_of("patching")
    wider = changed(sft, lambda model: widen(model, 10))
    plain, _ = run(tmp_path / "plain", cell, pair(base, sft))
    wide, _ = run(tmp_path / "wide", cell, pair(base, wider))
    pd.testing.assert_frame_equal(plain, wide, rtol=1e-3, atol=1e-5)


def widen(model: Any, rows: int) -> None:
    """Rows of the head that stand for no token, and would be likely."""
    head = torch.nn.Linear(32, len(model.lm_head.weight) + rows, bias=False)
    head.weight.copy_(torch.cat([model.lm_head.weight, 5 * torch.ones(rows, 32)]))
    model.lm_head = head
