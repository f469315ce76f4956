"""Ground truth of key-value communication: what the tiny study has to find, and its verdicts on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nullarm.conduct import conclude, lay_down, prepare, run
from nullarm.engines.local import LocalEngine
from nullarm.protocols.kv_communication.tables import ITEMS
from nullarm.stats.verdict import Verdict
from nullarm.store.study_store import StudyStore
from nullarm.study.shipped import study_path
from nullarm.study.spec import Study
from nullarm.study.strict_yaml import parse_file
from nullarm.study.validate import validated

ARMS = ("receiver_only", "c2c", "zeroed", "shuffled", "text_to_text", "symmetric2", "int4_group", "rotated2",
        "front_half", "back_half", "pieces", "pieces_one_id")  # fmt: skip
"""Of the tiny study; the others would add minutes and no claim."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    data = parse_file(study_path("kv_communication_tiny")).data
    data["factors"]["channel"] = {name: data["factors"]["channel"][name] for name in ARMS}
    data["seeds"] = [0, 1]
    parameters = data["parameters"]
    parameters |= {"channels": {name: parameters["channels"][name] for name in ARMS}, "grid": None}
    parameters["milestones"] = [0, 2, 3, 5]
    root = tmp_path_factory.mktemp("class_of_word") / "study"
    made = lay_down(prepare(validated(Study, data, "tiny", {})), root)
    run(made, LocalEngine(at_once=1))
    return made


@pytest.fixture(scope="module")
def accuracy(store: StudyStore) -> Mapping[str, float]:
    """Of each arm, over both fusers."""
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for cell in store.plan:
        if cell.arm is not None and (finished := store.finished(cell.id)):
            found[cell.arm].append(float(np.mean(finished.table(ITEMS)["accuracy"])))
    assert {len(values) for values in found.values()} == {2}
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_the_fused_receiver_answers_about_words_it_never_met(accuracy: Mapping[str, float]) -> None:
    assert accuracy["c2c"] >= 0.90
    assert accuracy["receiver_only"] <= 0.35


def test_it_is_the_sharers_own_cache_that_does_it(accuracy: Mapping[str, float]) -> None:
    assert accuracy["zeroed"] <= 0.35
    assert accuracy["shuffled"] <= 0.35


def test_rotated_2_bit_holds_where_symmetric_collapses(accuracy: Mapping[str, float]) -> None:
    assert accuracy["rotated2"] - accuracy["symmetric2"] >= 0.20


def test_the_back_half_says_more_than_the_front_half(accuracy: Mapping[str, float]) -> None:
    assert accuracy["back_half"] > accuracy["front_half"]


def test_offsets_recover_what_one_id_a_token_loses(accuracy: Mapping[str, float]) -> None:
    assert accuracy["pieces"] >= 0.80
    assert accuracy["pieces_one_id"] <= 0.45


def test_the_verdicts_say_so(store: StudyStore) -> None:
    judged = {f.judgement.name: f.judgement for f in conclude(store).analysis.findings}

    assert judged.pop("four_bits_cost_nothing").verdict is Verdict.EQUIVALENT
    assert {judgement.verdict for judgement in judged.values()} == {Verdict.CONFIRMED}
    offsets = judged["offsets_over_one_id"].interval
    assert offsets is not None
    assert offsets.low > 0
