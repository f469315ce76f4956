"""Arms as a timing session loads them, and what speculation counts while it is timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factored_models import factored, loaded
from low_rank_outcomes import session

from nullarm.bench.fresh import FreshProcess
from nullarm.bench.runs import Run, State
from nullarm.bench.session import Instruments
from nullarm.bench.settings import BenchSettings
from nullarm.bench.weather import Reading
from nullarm.errors import ModelError
from nullarm.models.reference import content_id
from nullarm.protocols.low_rank import timing
from nullarm.protocols.low_rank.factored.checkpoint import save
from nullarm.protocols.low_rank.side_by_side import side_by_side
from nullarm.protocols.low_rank.speculation.result import Round, Speculation, predicted_speed_up
from nullarm.protocols.low_rank.speculation.session import predictions
from nullarm.protocols.low_rank.timed_arm import TimedArm
from nullarm.protocols.low_rank.timing import Loaded, Resident, Subjects, runner_unless_same
from nullarm.store.files import read_json
from support.machines import SimulatedMachine

REF = "builtin:world"
PLAIN = TimedArm(REF)
DRAFTS = {"tokens": 3, "temperature": 0.0, "drafter": "compress"}
SETTINGS: dict[str, Any] = {
    "blocks": 5, "again_blocks": 2, "slowed_blocks": 2, "tokens": 4, "prompt": "the", "retries": 0,
    "warmup_max_runs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("factors") / "arm"
    made = factored(loaded(REF), REF, rank=32)
    save(place, made, model_ref=REF, model_content_id=content_id(REF), provenance={})
    return place


def subjects(treatment: TimedArm, control: TimedArm = PLAIN, **more: Any) -> Subjects:
    settings = BenchSettings.model_validate({**SETTINGS, **more})
    return Subjects({"treatment": treatment, "control": control}, "float32", "cpu", settings, seed=0)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name in ("load_causal_lm", "read_for", "content_id"):
        original = getattr(timing, name)

        def counting(*args: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            calls[name] += 1
            return original(*args, **more)

        monkeypatch.setattr(timing, name, counting)
    return calls


def test_factors_of_another_model_are_refused(factors: Path) -> None:
    arm = TimedArm("random:tiny-llama", factors)
    words = "random:tiny-llama is another model than the one that .*arm was made from; got 'random:tiny-llama@"
    with pytest.raises(ModelError, match=words):
        subjects(arm).one("treatment")
    with pytest.raises(ModelError, match=words):
        Resident(subjects(arm))("control")


def test_what_was_loaded_to_compare_the_arms_is_what_runs(factors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    run = runner_unless_same(subjects(TimedArm(REF, factors), TimedArm(REF, factors, DRAFTS)))
    assert run is not None
    for arm in ("treatment", "control", "slowed"):
        assert run(arm).tokens == 4
    assert calls == {"load_causal_lm": 1, "read_for": 2, "content_id": 1}


def test_a_runner_of_new_processes_keeps_no_model(factors: Path) -> None:
    asked = subjects(TimedArm(REF, factors), procedure="fresh_process")
    run = runner_unless_same(asked)
    assert isinstance(run, FreshProcess)
    assert run.make == asked.one
    assert set(vars(asked)) == {"arms", "dtype", "device", "settings", "seed"}


def test_arms_are_the_same_by_weights_and_way_of_decoding(factors: Path) -> None:
    treated, drafting = TimedArm(REF, factors), TimedArm(REF, factors, DRAFTS)
    longer = replace(drafting, speculation={**DRAFTS, "tokens": 4})
    same = {(a, b): Loaded(subjects(*pair)).same() for (a, b), pair in {
        ("plain", "plain"): (PLAIN, PLAIN),
        ("treated", "treated"): (treated, treated),
        ("treated", "plain"): (treated, PLAIN),
        ("treated", "drafting"): (treated, drafting),
        ("drafting", "drafting"): (drafting, drafting),
        ("drafting", "longer"): (drafting, longer),
    }.items()}  # fmt: skip
    assert {pair for pair, is_same in same.items() if is_same} == {
        ("plain", "plain"), ("treated", "treated"), ("drafting", "drafting")
    }  # fmt: skip


def test_nothing_is_timed_where_both_are_the_same(tmp_path: Path) -> None:
    assert timed(PLAIN, tmp_path / "out").verdict == "NO_OP"
    assert not (tmp_path / "out").exists()


def test_runs_are_counted_without_those_that_warm_up(factors: Path) -> None:
    run = Resident(subjects(TimedArm(REF, factors, DRAFTS)))
    block = [r for r in session() if (r.phase, r.block) == ("contrast", 0)]
    assert [r.arm for r in block] == ["treatment", "control", "control", "treatment"]
    run("treatment")
    first = run.counted([])
    for r in [block[0], *block]:  # one too many: it warms up
        run(r.arm)
    found = run.counted(block)
    assert first == {}
    assert list(found) == [block[0].run, block[3].run]
    assert all(len(one.tokens) == 4 for one in found.values())
    assert run.counted([]) == {}
    for r in block:
        run(r.arm)
    assert run.counted([replace(r, phase="again") for r in block]) == {}
    assert run.counted([]) == {}


def speculation(accepted: int, draft_s: float) -> Speculation:
    """Two rounds of three drafted tokens."""
    rounds = (Round(3, accepted, accepted + 1, draft_s, 0.1), Round(3, 0, 1, draft_s, 0.1))
    return Speculation(tuple(range(accepted + 2)), 3, 0.0, rounds)


def runs_of_two_blocks() -> list[Run]:
    runs = [r for r in session() if (r.phase, r.block) in {("contrast", 0), ("contrast", 1), ("again", 0)}]
    return [replace(r, run=number, decode_s=6.4, tokens=64) for number, r in enumerate(runs)]


def test_the_prediction_is_of_the_runs_that_may_be_believed() -> None:
    runs = runs_of_two_blocks()
    counts = {r.run: speculation(2, 0.06) for r in runs if r.arm == "treatment"}
    dirty = {r.run for r in runs if (r.phase, r.block) == ("contrast", 1)}
    counts |= {n: speculation(0, 9.0) for n in dirty & counts.keys()}
    runs = [replace(r, state=State.CONTAMINATED) if r.run in dirty else r for r in runs]
    found = predictions(runs, counts, plain=True)

    assert list(found) == ["treatment"]
    told = found["treatment"]
    assert (told["runs"], told["rounds"], told["proposed"]) == (2, 4, [4, 4, 4])
    assert (told["accepted"], told["judged"]) == ([2, 2, 0], [4, 2, 2])
    assert (told["alpha"], told["tokens_per_round"]) == (0.5, 2.0)
    assert told["cost_ratio"] == pytest.approx(0.02 / 0.1)
    assert told["predicted_speed_up"] == pytest.approx(predicted_speed_up(0.5, 3, 0.2))
    assert predictions([r for r in runs if r.run in dirty], counts, plain=True) == {}


def test_without_a_plain_control_nothing_is_predicted() -> None:
    runs = runs_of_two_blocks()
    found = predictions(runs, {r.run: speculation(2, 0.06) for r in runs}, plain=False)
    assert set(found) == {"treatment", "control"}
    assert {(one["cost_ratio"], one["predicted_speed_up"]) for one in found.values()} == {(None, None)}
    assert found["control"]["alpha"] == 0.5


def timed(treatment: TimedArm, out: Path | None) -> Any:
    return side_by_side(
        {"treatment": treatment, "control": PLAIN}, BenchSettings.model_validate(SETTINGS), margin=0.005, alpha=0.05,
        dtype="float32", device="cpu", seed=0, out=out, tell=lambda done, total, note: None,
    )  # fmt: skip


@contextmanager
def quiet(device: torch.device, *, ours: int) -> Iterator[Instruments]:
    """Where nobody else computes."""
    machine = SimulatedMachine(np.random.default_rng(0))
    yield Instruments(lambda: Reading(0.002, 0.001), machine.watch)


def test_a_session_of_two_arms_tells_what_speculation_counted(
    factors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullarm.bench.instruments.instruments", quiet)
    timed(TimedArm(REF, factors, DRAFTS), tmp_path)
    told = read_json(tmp_path / "speculation.json")
    assert list(told) == ["treatment"]
    assert told["treatment"]["runs"] == 10
    assert told["treatment"]["predicted_speed_up"] > 0
    timed(TimedArm(REF, factors), tmp_path / "plain")
    assert not (tmp_path / "plain" / "speculation.json").exists()
