"""The source's CSV of timed runs: read as written, refused in words where it is something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.bench.source_csv import SourceRun, control_of, read_runs, speeds_by_tag, write_runs
from nullarm.errors import FormatError, UsageError

GOLDEN = Path(__file__).parents[2] / "golden"
ROWS = "baseline,1,39.2\nbaseline,2,39.3\nmcr,1,39.3\nmcr,2,39.2\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_golden_file() -> None:
    runs = read_runs(GOLDEN / "mcr_ablation_clean.csv")
    assert runs[0] == SourceRun("baseline", 1, 39.2)
    assert speeds_by_tag(runs) == {"baseline": [39.2, 39.3, 39.3, 39.3], "mcr": [39.3, 39.2, 39.2, 39.2]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    runs = (
        SourceRun("baseline", 1, 39.21, 12.5, 0), SourceRun("baseline", 2, 1 / 3, None, 0),
        SourceRun("m,c r", 1, 2.0, 0.25, None), SourceRun("m,c r", 2, 2e-7),
    )  # fmt: skip
    path = tmp_path / "mcr_ablation.csv"
    write_runs(path, runs)
    assert path.read_text().splitlines()[0] == "tag,rep,tps,duration_s,returncode"
    assert read_runs(path) == runs


def test_spaces_blank_lines_other_orders_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    text = "\ufefftps, rep ,tag\r\n39.2,1,a\r\n\r\n39.3, 2,a\r\n39.2,1,b\r\n39.3,2,b\r\n"
    assert read_runs(written(tmp_path, text)) == tuple(
        SourceRun(tag, rep, tps) for tag in "ab" for rep, tps in ((1, 39.2), (2, 39.3))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; valid: a header tag,rep,tps, optionally duration_s,returncode"),
        ("tag,rep\nbaseline,1\n", "has no column 'tps'; got 'tag,rep'"),
        ("tag,rep,tps,seconds\n", "has a column 'seconds' too many"),
        ("tag,rep,tps,tps\n", "has a column 'tps' too many"),
        ("tag,rep,tps\nbaseline,1,fast\n", "line 2: tps is not a number; got 'fast'"),
        ("tag,rep,tps\nbaseline,1,nan\n", "line 2: tps is not a number; got 'nan'"),
        ("tag,rep,tps\nbaseline,1,39,2\n", "line 2 has 4 fields and the header 3; got 'baseline,1,39,2'"),
        ("tag,rep,tps\nbaseline,one,39\n", "line 2: rep is not a whole number; got 'one'"),
        ("tag,rep,tps\n,1,39\n", "line 2: the tag is empty"),
        ("tag,rep,tps\nbaseline,1,0\n", "line 2: tps is not above 0; got 0.0"),
        ("tag,rep,tps\nbaseline,1,-3\n", "line 2: tps is not above 0; got -3.0"),
        ("tag,rep,tps,returncode\nbaseline,1,39,137\n", "line 2: the run failed; got 137; valid: return code 0"),
        ("tag,rep,tps,duration_s\nbaseline,1,39,long\n", "line 2: duration_s is not a number; got 'long'"),
        ("tag,rep,tps\n", "has runs of 0 tags"),
        ("tag,rep,tps\nbaseline,1,39\nbaseline,2,39\n", "has runs of 1 tags; got ['baseline']; valid: 2 tags"),
        (f"tag,rep,tps\n{ROWS}third,1,39\n", "has runs of 3 tags; got ['baseline', 'mcr', 'third']"),
        ("tag,rep,tps\nbaseline,1,39\nbaseline,2,39\nmcr,1,39\n", "has 1 run of 'mcr'; valid: 2 runs of each tag"),
        (f"tag,rep,tps\n{ROWS}mcr,1,40\n", "has repetition 1 of 'mcr' twice"),
        ('tag,rep,tps\n"baseline,1,39\n', "is not a readable CSV file: unexpected end of data"),
    ],
)
def test_another_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_runs(written(tmp_path, text))
    assert words in str(caught.value)
    assert "runs.csv" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes(b"tag,rep,tps\n\xff\xfe\n")
    with pytest.raises(FormatError, match="not a readable CSV file"):
        read_runs(tmp_path / "runs.csv")


def test_the_control_is_the_one_asked_for_or_baseline_or_the_first() -> None:
    assert control_of({"mcr": [1.0], "baseline": [1.0]}, None) == "baseline"
    assert control_of({"mcr": [1.0], "baseline": [1.0]}, "mcr") == "mcr"
    assert control_of({"new": [1.0], "old": [1.0]}, None) == "new"
    with pytest.raises(UsageError, match=r"no runs are tagged 'basline' \(did you mean 'baseline'\?\); valid: mcr"):
        control_of({"mcr": [1.0], "baseline": [1.0]}, "basline")
