"""Judging a results directory of the source's runbook: `seed_*/bench.json`, one accuracy per arm and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Never

import numpy as np

from nullarm.errors import FormatError
from nullarm.protocols.rank_mechanism.arms import AUDITED, LEGACY_NAMES, SHUFFLED
from nullarm.stats.judge import judge_from_summary, withhold
from nullarm.stats.paired import Summary, welch
from nullarm.stats.verdict import Judgement, Verdict
from nullarm.store.paths import StudyPaths

CONTRAST = "mechanism_benefit"
TREATED, CONTROL = LEGACY_NAMES[AUDITED], LEGACY_NAMES[SHUFFLED]
ALPHA = 0.05
MARGIN = 0.01
"""The source's own threshold for a mechanism benefit, in accuracy."""
_FILES = "seed_*/bench.json"


@dataclass(frozen=True)
class BenchFile:
    """What one `bench.json` says. An accuracy that is not there is None.

    Attributes:
        path: The file.
        seed: From the name of its folder.
        obstacle: Why it may not enter a verdict, or None.
        setting: Model and task, for comparison between seeds.
        accuracy: By arm.
    """

    path: Path
    seed: str
    obstacle: str | None
    setting: Any
    accuracy: Mapping[str, float | None]


def is_bench_directory(path: Path) -> bool:
    """Whether `path` holds `seed_*/bench.json` files and is no study directory of nullarm's."""
    return path.is_dir() and not StudyPaths(path).lock.exists() and any(path.glob(_FILES))


def judge_bench(path: Path, *, alpha: float = ALPHA, margin: float = MARGIN) -> Judgement:
    """Judge `per_layer` against `per_layer_shuffled` over the seeds of a results directory.

    The test is Welch's, two-sided: the runbook's initialisation was not seeded, so two runs of one seed are no pair,
    and nobody declared a direction to us. Every seed must have both arms.

    Args:
        path: The directory.
        alpha: Level of the test.
        margin: Smallest difference in accuracy that matters.

    Raises:
        FormatError: There is no such file, or one is not a `bench.json`.
    """
    files = [_read(file) for file in sorted(path.glob(_FILES))]
    if not files:
        raise FormatError(f"{path} holds no results", valid=_FILES, next_command="name the directory above seed_42")
    if obstacle := _obstacle(files):
        return withhold(CONTRAST, Verdict.INVALID, obstacle, alpha=alpha, margin=margin)
    treated, control = _column(files, TREATED), _column(files, CONTROL)
    judged = judge_from_summary(
        CONTRAST, _summary(treated), _summary(control), alpha=alpha, margin=margin, rng=np.random.default_rng(0)
    )
    test = welch(treated, control)
    if test is None:
        return judged
    shown = (
        f"Over {len(files)} seeds {TREATED} has {_shown(treated)} and {CONTROL} {_shown(control)}: "
        f"Welch t = {test.statistic:.2f}, df = {test.df:.2f}, two-sided p = {test.p_two_sided:.3f}."
    )
    return replace(judged, reason=f"{judged.reason} {shown}")


def _read(path: Path) -> BenchFile:
    try:
        data = json.loads(path.read_text("utf-8"), parse_constant=lambda word: _refuse(path, word))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is not readable JSON: {error}", next_command="copy the results again") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} is no bench.json: it is not a mapping", valid="the file that a bench run wrote")
    compressed = data.get("compressed") or {}
    if not isinstance(compressed, dict):
        raise FormatError(f"{path}: `compressed` is not a mapping of arms", value=compressed)
    seed = path.parent.name.removeprefix("seed_")
    accuracy = {arm: _accuracy(path, compressed, arm) for arm in (TREATED, CONTROL)}
    return BenchFile(path, seed, _own_obstacle(data, seed), [data.get("model"), data.get("task")], accuracy)


def _refuse(path: Path, word: str) -> Never:
    raise FormatError(f"{path} holds a number that is none", value=word, valid="finite numbers, or null where missing")


def _own_obstacle(data: Mapping[str, Any], seed: str) -> str | None:
    if data.get("smoke") is True:
        return f"seed {seed} is a smoke run, which never enters a verdict"
    status = data.get("status")
    if isinstance(status, str) and status not in ("OK", "INCOMPLETE"):
        return f"the status of seed {seed} is {status}"
    return None


def _accuracy(path: Path, compressed: Mapping[str, Any], arm: str) -> float | None:
    entry = compressed.get(arm)
    value = entry.get("accuracy") if isinstance(entry, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FormatError(
            f"{path}: compressed.{arm}.accuracy is no accuracy", value=value, valid="a number from 0 to 1"
        )
    return float(value)


def _obstacle(files: list[BenchFile]) -> str | None:
    """Why these files give no verdict, whatever their numbers."""
    for file in files:
        if file.obstacle:
            return file.obstacle
        if missing := [arm for arm, accuracy in file.accuracy.items() if accuracy is None]:
            return f"seed {file.seed} has no accuracy for {missing[0]} ({file.path.parent.name}/{file.path.name})"
        if file.setting != files[0].setting:
            return f"seeds {files[0].seed} and {file.seed} have different models or tasks"
    return None


def _column(files: list[BenchFile], arm: str) -> list[float]:
    return [accuracy for file in files if (accuracy := file.accuracy[arm]) is not None]


def _summary(values: list[float]) -> Summary:
    return Summary(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def _shown(values: list[float]) -> str:
    summary = _summary(values)
    return f"{summary.mean:.3f} ± {summary.sd:.3f}"
