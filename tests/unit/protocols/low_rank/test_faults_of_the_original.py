"""Known faults of the source's five-arm ablation and of its null re-run, each shown mended.

Others are shown where their part is tested: that a session's verdict does not hang on the arm's effect in
`tests/unit/bench/test_judging.py`, that one failed arm does not pass unseen in `tests/unit/test_runner.py`.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from low_rank_studies import COMPRESS, finished, low_rank_study, ran, the_cell, weights_of

from nullarm.analysis import Analysis
from nullarm.bench.blocks import schedule
from nullarm.bench.settings import BenchSettings
from nullarm.models.load import load_causal_lm
from nullarm.models.texts.factory import make_text
from nullarm.protocols.low_rank.analyse import analyse
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import rule
from nullarm.protocols.low_rank.speculation.result import pooled
from nullarm.protocols.low_rank.tables import HISTORY, ITEMS
from nullarm.store.study_store import StudyStore

STREAM = {"blocks": 1, "block_tokens": 1024}
ARMS: dict[str, Any] = {
    "gauge": {**COMPRESS, "gauge": {}},
    "online": {**COMPRESS, "online": STREAM},
    "frozen": {**COMPRESS, "online": {**STREAM, "direction": "frozen"}},
    "mcr": {**COMPRESS, "allocation": {"kind": "mcr"}},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    contrasts = tuple(
        {"name": arm, "treatment": arm, "control": "compress", "kind": "difference", "test": "paired_items"}
        for arm in ARMS
    )
    return ran(tmp_path_factory.mktemp("faults") / "study", low_rank_study(ARMS, contrasts))


def verdicts(found: Analysis) -> dict[str, str]:
    return {f.contrast.name: f.judgement.verdict.value for f in found.findings}


def test_an_inert_gauge_and_an_inert_stream_say_that_they_do_nothing(study: StudyStore) -> None:
    """The source reported numbers for both; with q, k and v alone its gauge could change nothing."""
    found = verdicts(analyse(study))

    assert found["gauge"] == found["frozen"] == "NO_OP"
    assert finished(study, "compress", "gauge").json(HISTORY)["gauge"]["moved"] == 0


def test_a_stream_that_is_not_inert_changes_the_weights(study: StudyStore) -> None:
    """The source's online arm changed nothing. Ours is judged by what it does to the likelihood."""
    assert weights_of(study, "online") != weights_of(study, "compress")
    assert verdicts(analyse(study))["online"] in {"DIFFERENT", "EQUIVALENT", "INCONCLUSIVE"}
    assert any(step["turned"] > 0 for step in finished(study, "compress", "online").json(HISTORY)["online"])


def test_two_allocations_never_load_the_same_cached_weights(study: StudyStore) -> None:
    """The source's cache key left out the option, so that both arms of its null were one model."""
    plan = LowRank().plan(low_rank_study(ARMS))
    ids = {cell.id for cell in plan if cell.stage == "compress"}

    assert len(ids) == len(ARMS) + 1
    assert the_cell(study, "compress", "mcr").parameters["compression"]["allocation"]["kind"] == "mcr"
    assert weights_of(study, "mcr") != weights_of(study, "compress")
    assert verdicts(analyse(study))["mcr"] != "NO_OP"


def test_acceptance_is_of_tokens_that_the_drafter_wrote(study: StudyStore) -> None:
    """The source counted tokens that one model drafted and judged: an identity. A drafter of noise is refused."""
    verifier, tokenizer = load_causal_lm("builtin:world")
    noise, _ = load_causal_lm("builtin:world")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * parameter.std())
    text = make_text(the_cell(study, "spectra").settings["text"]).documents("test")
    prompts = [torch.tensor([tokenizer(document.text)["input_ids"][:12]]) for document in text]

    def acceptance(drafter: Any) -> float:
        greedy = rule(0.0, torch.Generator())
        made = pooled([speculate(verifier, drafter, prompt, 16, draft_length=4, rule=greedy) for prompt in prompts])
        assert made.acceptance is not None
        assert made.verifier_tokens > 0
        return made.acceptance

    assert acceptance(noise) < 0.2
    assert acceptance(verifier) == 1.0


def test_arms_are_not_run_in_two_heaps_unless_the_sources_procedure_is_asked_for() -> None:
    """Eight runs in the order of the source tell arms from time no better than from each other."""

    def longest_heap(procedure: str) -> int:
        settings = BenchSettings.model_validate({"procedure": procedure})
        blocks = schedule(settings, np.random.default_rng(0))
        arms = [arm for block in blocks if block.phase == "contrast" for arm in block.arms]
        return max(len(list(runs)) for _, runs in groupby(arms))

    assert longest_heap("blocked") == 4
    assert longest_heap("abba") <= 4
    for block in schedule(BenchSettings(), np.random.default_rng(0)):
        # the two arms lie, on average, at the same moment: a drift in time cancels
        places = {arm: [i for i, other in enumerate(block.arms) if other == arm] for arm in ("treatment", "control")}
        assert sum(places["treatment"]) == sum(places["control"])


def test_perplexity_is_of_every_token_of_the_text(study: StudyStore) -> None:
    """The source took it on one collage of 512 tokens. Here all but the first of each document are scored, once."""
    _, tokenizer = load_causal_lm("builtin:world")
    text = make_text(the_cell(study, "spectra").settings["text"]).documents("test")
    table = finished(study, "evaluate", "compress").table(ITEMS)
    scored: dict[str, int] = {}
    for document, tokens in zip(table["cluster"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        scored[document] = scored.get(document, 0) + tokens

    begin = 0 if tokenizer.bos_token_id is None else 1
    assert scored == {
        document.id: len(tokenizer(document.text, add_special_tokens=False)["input_ids"]) + begin - 1
        for document in text
    }


def test_factors_of_one_arm_are_never_found_under_the_name_of_another(study: StudyStore, tmp_path: Path) -> None:
    """Equal settings under two names are two cells, each with its own directory, and their hashes agree."""
    twin = ran(tmp_path / "twin", low_rank_study({"same": COMPRESS}))

    assert the_cell(twin, "compress", "same").id != the_cell(twin, "compress", "compress").id
    assert weights_of(twin, "same") == weights_of(twin, "compress") == weights_of(study, "compress")
