from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

from nullarm.errors import FormatError
from nullarm.protocols.rank_mechanism.bench import is_bench_directory, judge_bench
from nullarm.stats.verdict import Verdict

PER_LAYER = (0.667, 0.675, 0.683)
SHUFFLED = (0.648, 0.660, 0.672)


def bench(per_layer: Any, shuffled: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": "mistralai/Mistral-7B-v0.1",
        "probe": {"accuracy": 0.65},
        "compressed": {"per_layer": {"accuracy": per_layer}, "per_layer_shuffled": {"accuracy": shuffled}},
        **more,
    }


def write(root: Path, content: Sequence[Any]) -> Path:
    for seed, data in enumerate(content, start=42):
        path = root / f"seed_{seed}" / "bench.json"
        path.parent.mkdir(parents=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return root


def pairs(root: Path, per_layer: Sequence[Any], shuffled: Sequence[Any]) -> Path:
    return write(root, [bench(a, b) for a, b in zip(per_layer, shuffled, strict=True)])


def test_the_runbooks_success_example_is_inconclusive(tmp_path: Path) -> None:
    assert [fmean(PER_LAYER), stdev(PER_LAYER)] == pytest.approx([0.675, 0.008])
    assert [fmean(SHUFFLED), stdev(SHUFFLED)] == pytest.approx([0.660, 0.012])
    judged = judge_bench(pairs(tmp_path, PER_LAYER, SHUFFLED))
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert judged.estimate == pytest.approx(0.015)
    assert judged.p == pytest.approx(0.157, abs=5e-4)
    assert "0.675 ± 0.008" in judged.reason
    assert "0.660 ± 0.012" in judged.reason
    assert "Welch t = 1.80, df = 3.48, two-sided p = 0.157" in judged.reason
    assert judged.n_needed is not None
    assert judged.n_needed > 3


def test_p_is_scipys_welch(tmp_path: Path) -> None:
    judged = judge_bench(pairs(tmp_path, PER_LAYER, SHUFFLED))
    assert judged.p == pytest.approx(stats.ttest_ind(PER_LAYER, SHUFFLED, equal_var=False).pvalue)


def test_which_seed_a_number_belongs_to_does_not_matter(tmp_path: Path) -> None:
    """The runbook's initialisation was not seeded: its seeds are no pairs, and a lucky order must not help."""
    straight = judge_bench(pairs(tmp_path / "a", PER_LAYER, SHUFFLED))
    crossed = judge_bench(pairs(tmp_path / "b", PER_LAYER, SHUFFLED[::-1]))
    assert straight.p == pytest.approx(crossed.p)


def test_an_effect_large_enough_is_confirmed_and_the_reverse_harmful(tmp_path: Path) -> None:
    assert judge_bench(pairs(tmp_path / "a", PER_LAYER, (0.5, 0.51, 0.49))).verdict is Verdict.CONFIRMED
    assert judge_bench(pairs(tmp_path / "b", (0.5, 0.51, 0.49), PER_LAYER)).verdict is Verdict.HARMFUL


def test_one_seed_is_too_few(tmp_path: Path) -> None:
    assert judge_bench(pairs(tmp_path, [0.7], [0.6])).verdict is Verdict.INSUFFICIENT_DATA


def test_what_is_a_bench_directory(tmp_path: Path) -> None:
    root = pairs(tmp_path / "results", PER_LAYER, SHUFFLED)
    assert is_bench_directory(root)
    assert not is_bench_directory(tmp_path)
    assert not is_bench_directory(tmp_path / "missing")
    (root / "study.lock.yaml").write_text("format: 1", "utf-8")
    assert not is_bench_directory(root)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (bench(None, 0.66), r"Seed 44 has no accuracy for per_layer \(seed_44/bench.json\)"),
        ({"model": "mistralai/Mistral-7B-v0.1", "compressed": {}}, "Seed 44 has no accuracy for per_layer"),
        ({"status": "UNDERTRAINED", "compressed": None}, "The status of seed 44 is UNDERTRAINED"),
        (bench(0.7, 0.6, smoke=True), "Seed 44 is a smoke run, which never enters a verdict"),
        (bench(0.7, 0.6) | {"model": "other"}, "Seeds 42 and 44 have different models or tasks"),
    ],
)
def test_what_may_not_enter_a_verdict_is_named(tmp_path: Path, last: Any, reason: str) -> None:
    judged = judge_bench(write(tmp_path, [bench(0.7, 0.6), bench(0.71, 0.6), last]))
    assert judged.verdict is Verdict.INVALID
    assert judged.estimate is None
    assert reason.replace("\\", "") in judged.reason


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "seed_42/bench.json is not readable JSON"),
        ("[]", "seed_42/bench.json is no bench.json: it is not a mapping"),
        ('{"compressed": [1]}', "`compressed` is not a mapping of arms; got \\[1\\]"),
        (bench("0.7", 0.6), "compressed.per_layer.accuracy is no accuracy; got '0.7'; valid: a number from 0 to 1"),
        (bench(0.7, 66.0), "compressed.per_layer_shuffled.accuracy is no accuracy; got 66.0"),
        (bench(True, 0.6), "compressed.per_layer.accuracy is no accuracy; got True"),
        (bench(float("nan"), 0.6), "seed_42/bench.json holds a number that is none; got 'NaN'"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        judge_bench(write(tmp_path, [content]))


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"holds no results; valid: seed_\*/bench.json"):
        judge_bench(tmp_path)
