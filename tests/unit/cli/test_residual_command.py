"""`nullarm residual report` as people call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullarm.protocols.residual.export.write import write_json
from nullarm.protocols.residual.runs import multi_pass
from nullarm.store.record import FinishedCell
from support.captures import HOTSPOT, capture_store, finish_capture
from support.command import nullarm


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> FinishedCell:
    with capture_store(tmp_path_factory.mktemp("single") / "study") as store:
        return finish_capture(store, next(iter(store.plan)))


@pytest.fixture(scope="module")
def multi_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("multi")
    with capture_store(root / "study", passes=multi_pass()) as store:
        return write_json(finish_capture(store, next(iter(store.plan)), passes=multi_pass()), root)[0]


def test_a_study_directory(single: FinishedCell) -> None:
    study = single.paths.root.parent.parent
    outcome = nullarm("residual", "report", study, "--top-n", 1)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"{study}: seed 0 · little · identity · default · kl_div"
    assert lines[6].split() == ["1", "2", '"Ġno"', "64.00", "1"]


def test_json_is_one_document_of_all_rows(multi_file: Path) -> None:
    outcome = nullarm("residual", "report", multi_file, "--json", "--metric", "kl_div", "--metric", "norm_diff")
    assert (outcome.code, outcome.err) == (0, "")
    assert {row["metric"] for row in outcome.json} == {"kl_div", "norm_diff"}
    first = next(row for row in outcome.json if row["kind"] == "hotspot")
    assert HOTSPOT.items() <= first.items()
    assert (first["record"], first["input"]) == ("BB-SS", str(multi_file))


def test_every_option(multi_file: Path, single: FinishedCell, tmp_path: Path) -> None:
    outcome = nullarm(
        "residual", "report", multi_file, single.paths.root, "--axis", "token", "--record-type", "pairwise",
        "--token-id", 3, "--token-id", 5, "--logit-source", "base", "--export", tmp_path / "x.parquet", "--json",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, f"wrote {tmp_path / 'x.parquet'}\n")
    assert {row["metric"] for row in outcome.json} == {"kl_div", "logit_base:3", "logit_base:5"}
    assert {row["input"] for row in outcome.json} == {str(multi_file), str(single.paths.root)}
    assert {row["position"] for row in outcome.json} == {0, 1, 2, 3}
    assert (tmp_path / "x.parquet").exists()


def test_runs(multi_file: Path) -> None:
    outcome = nullarm("residual", "report", multi_file, "--record-type", "runs", "--json")
    assert {row["record"] for row in outcome.json} == {"BB", "BS", "SB", "SS"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument 'INPUTS…'"),
        (("nowhere",), 2, "'INPUTS…': Path 'nowhere' does not exist"),
        (("FILE", "--record", "BB-SB", "--record", "BBSS"), 2, "no comparison 'BBSS' (did you mean 'BB-SS'?)"),
        (("FILE", "--record-type", "runs", "--record", "BB-SS"), 2, "hold no run 'BB-SS'; valid: BB, BS, SB, SS"),
        (("FILE", "--metric", "kl"), 2, "comparisons have no metric 'kl'; valid: entropy_base, entropy_sft, kl_div"),
        (("FILE", "--record-type", "runs", "--metric", "kl_div"), 2, "runs have no metric 'kl_div'; valid: entropy"),
        (("FILE", "--token-id", "9"), 2, "token 9 was not tracked (logit_diff:9 · BB-SS · prompt 0"),
        (("FILE", "--axis", "head"), 2, "'head' is not one of 'layer', 'token'"),
        (("FILE", "--top-n", "-1"), 2, "-1 is not in the range x>=0"),
        (("META",), 12, "holds no JSON array"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(multi_file: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    known = {"FILE": multi_file, "META": multi_file.with_suffix(".meta.json")}
    outcome = nullarm("residual", "report", *(known.get(word, word) for word in arguments))
    assert outcome.code == code
    assert words in outcome.error
    assert outcome.error.endswith("; next: nullarm residual report --help")
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [
        (("residual", "report"), "nullarm residual report --help"),
        (("residual", "reprot"), "nullarm residual --help"),
        (("residual", "--all"), "nullarm residual --help"),
        (("status", "--all", "report"), "nullarm status --help"),
        (("--all", "status"), "nullarm --help"),
    ],
)
def test_a_mistake_points_at_the_help_that_shows_the_options(arguments: tuple[str, ...], help_of: str) -> None:
    outcome = nullarm(*arguments)
    assert outcome.code == 2
    assert outcome.error.endswith(f"; next: {help_of}")


def test_a_directory_without_captures_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    outcome = nullarm("residual", "report", tmp_path)
    assert outcome.code == 2
    assert f"{tmp_path} holds no residual comparison; valid: a JSON file" in outcome.error


def test_the_export_says_where_it_is(multi_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    outcome = nullarm("residual", "report", multi_file, "--export", path)
    assert (outcome.code, outcome.err) == (0, f"wrote {path}\n")


def test_comparisons_and_runs_by_name(multi_file: Path) -> None:
    outcome = nullarm("residual", "report", multi_file, "--record", "BS-SS", "--record", "BB-SB", "--json")
    assert {row["record"] for row in outcome.json} == {"BS-SS", "BB-SB"}
    outcome = nullarm("residual", "report", multi_file, "--record-type", "runs", "--record", "SB", "--json")
    assert {row["record"] for row in outcome.json} == {"SB"}


def test_an_export_of_no_known_form_is_refused_before_the_work(tmp_path: Path) -> None:
    outcome = nullarm("residual", "report", tmp_path, "--export", tmp_path / "x.txt")
    assert outcome.code == 2
    assert "the suffix says no form; got '.txt'; valid: .csv, .json, .parquet" in outcome.error


def test_without_a_subcommand_it_shows_them() -> None:
    outcome = nullarm("residual")
    assert outcome.code == 0
    assert "report" in outcome.out


def test_every_option_of_the_report_is_described() -> None:
    outcome = nullarm("residual", "report", "--help")
    assert outcome.code == 0
    for option in (
        "--metric",
        "--axis",
        "--record-type",
        "--record ",
        "--top-n",
        "--token-id",
        "--logit-source",
        "--export",
        "--json",
    ):
        assert option in outcome.out
