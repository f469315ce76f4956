"""The source's `mcr_ablation.csv`: one timed run a line, `tag,rep,tps,duration_s,returncode`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from nullarm.errors import FormatError, UsageError, nearest
from nullarm.store.atomic import write_bytes

REQUIRED = ("tag", "rep", "tps")
OPTIONAL = ("duration_s", "returncode")
BASELINE = "baseline"
"""The tag that is the control unless another is named."""


@dataclass(frozen=True)
class SourceRun:
    """One line.

    Attributes:
        tag: The arm.
        rep: Number of the repetition within its arm.
        tps: Tokens per second.
        duration_s: Seconds that the run took, or None.
        returncode: What the process ended with, or None.
    """

    tag: str
    rep: int
    tps: float
    duration_s: float | None = None
    returncode: int | None = None


def read_runs(path: Path) -> tuple[SourceRun, ...]:
    """The runs of two arms, checked.

    Raises:
        FormatError: Not such a file: a column is missing, unknown or twice there, a field is not what it should be, a
            speed is not above 0, a run failed or is there twice, or there are not two tags with 2 runs each.
    """
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} is not a readable CSV file: {error}", valid=_header()) from error
    if not rows:
        raise FormatError(f"{path} is empty", valid=_header())
    names = [name.strip() for name in rows[0]]
    _check_columns(path, names)
    # The number of the line, but for quoted line breaks, which no field here can hold.
    runs = tuple(_run(f"{path}, line {i}", names, row) for i, row in enumerate(rows[1:], 2) if row)
    _check_runs(path, runs)
    return runs


def write_runs(path: Path, runs: Sequence[SourceRun]) -> None:
    """Write runs under the source's header; what is None is left empty.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*REQUIRED, *OPTIONAL])
    writer.writerows([run.tag, run.rep, run.tps, run.duration_s, run.returncode] for run in runs)
    write_bytes(path, text.getvalue().encode())


def speeds_by_tag(runs: Sequence[SourceRun]) -> dict[str, list[float]]:
    """Tokens per second of each arm's runs, arms and runs in the order of the file."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run.tag, []).append(run.tps)
    return found


def control_of(speeds: Mapping[str, Sequence[float]], asked: str | None) -> str:
    """The tag of the control: the one asked for, else `baseline`, else the first.

    Raises:
        UsageError: There is no such tag.
    """
    if asked is not None and asked not in speeds:
        raise UsageError(f"no runs are tagged {asked!r}{nearest(asked, speeds)}", valid=speeds)
    return asked or (BASELINE if BASELINE in speeds else next(iter(speeds)))


def _header() -> str:
    return f"a header {','.join(REQUIRED)}, optionally {','.join(OPTIONAL)}, and a line for each run"


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise FormatError(f"{path} has no column {missing[0]!r}", value=",".join(names), valid=_header())
    odd = [name for i, name in enumerate(names) if name not in (*REQUIRED, *OPTIONAL) or name in names[:i]]
    if odd:
        raise FormatError(f"{path} has a column {odd[0]!r} too many", valid=_header())


def _run(where: str, names: Sequence[str], row: Sequence[str]) -> SourceRun:
    if len(row) != len(names):
        raise FormatError(f"{where} has {len(row)} fields and the header {len(names)}", value=",".join(row))
    fields = dict(zip(names, map(str.strip, row), strict=True))
    if not fields["tag"]:
        raise FormatError(f"{where}: the tag is empty")
    run = SourceRun(
        tag=fields["tag"],
        rep=_whole(where, "rep", fields["rep"]),
        tps=_number(where, "tps", fields["tps"]),
        duration_s=_number(where, "duration_s", fields["duration_s"]) if fields.get("duration_s") else None,
        returncode=_whole(where, "returncode", fields["returncode"]) if fields.get("returncode") else None,
    )
    if run.tps <= 0:
        raise FormatError(f"{where}: tps is not above 0", value=run.tps, valid="tokens per second of a run that ran")
    if run.returncode:
        raise FormatError(f"{where}: the run failed", value=run.returncode, valid="return code 0")
    return run


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise FormatError(f"{where}: {name} is not a number", value=text, valid="a finite number such as 39.2")
    return value


def _whole(where: str, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise FormatError(f"{where}: {name} is not a whole number", value=text) from error


def _check_runs(path: Path, runs: Sequence[SourceRun]) -> None:
    speeds = speeds_by_tag(runs)
    if len(speeds) != 2:
        raise FormatError(
            f"{path} has runs of {len(speeds)} tags", value=list(speeds), valid="2 tags, one for each arm"
        )
    for tag, values in speeds.items():
        if len(values) < 2:
            raise FormatError(f"{path} has 1 run of {tag!r}", valid="2 runs of each tag or more")
    names = [(run.tag, run.rep) for run in runs]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise FormatError(f"{path} has repetition {twice[0][1]} of {twice[0][0]!r} twice")
