"""`nullarm bench judge` as people call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command import nullarm

GOLDEN = Path(__file__).parents[2] / "golden"
CLEAN, CONTAMINATED = (GOLDEN / f"mcr_ablation_{name}.csv" for name in ("clean", "contaminated"))


@pytest.mark.parametrize("rule", ["ours", "source"])
def test_the_clean_session_is_a_null_at_half_a_per_cent(rule: str) -> None:
    outcome = nullarm("bench", "judge", CLEAN, "--rule", rule, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = outcome.json
    assert (data["verdict"], data["session"], data["rule"]) == ("EQUIVALENT", "CLEAN", rule)
    assert data["sessions"] == {"ours": "CLEAN", "source": "CLEAN"}
    assert round(data["p"], 3) == 0.207
    assert data["ci"][0] < data["estimate"] < data["ci"][1]
    assert data["ci_level"] == 0.9
    assert data["name"] == "mcr against baseline"
    assert data["arms"]["baseline"] == {"n": 4, "mean": pytest.approx(39.275)}
    narrow = nullarm("bench", "judge", CLEAN, "--margin", 0.0025, "--rule", rule, "--json")
    assert (narrow.code, narrow.json["verdict"]) == (0, "INCONCLUSIVE")


@pytest.mark.parametrize("rule", ["ours", "source"])
def test_the_contaminated_session_is_invalid_and_shows_its_numbers(rule: str) -> None:
    outcome = nullarm("bench", "judge", CONTAMINATED, "--rule", rule, "--json")
    assert outcome.code == 5
    assert "no verdict, the session is CONTAMINATED; next: close what else is running" in outcome.error
    data = outcome.json
    assert (data["verdict"], data["session"]) == ("INVALID", "CONTAMINATED")
    assert data["sessions"] == {"ours": "CONTAMINATED", "source": "CONTAMINATED"}
    assert round(data["p"], 3) == 0.214
    assert round(data["spread"]["variance_ratio"]) == 440
    assert round(data["spread"]["sd_ratio"]) == 21
    assert round(data["spread"]["p_spread"], 3) == 0.009
    assert any("variance ratio 440" in reason for reason in data["reasons"])


def test_people_see_both_readings_and_both_rules() -> None:
    outcome = nullarm("bench", "judge", CONTAMINATED)
    assert outcome.code == 5
    lines = outcome.out.splitlines()
    assert lines[0] == "mcr against baseline: INVALID · session CONTAMINATED"
    assert "ratio of variances 440, of standard deviations 21; Brown–Forsythe p 0.00936" in outcome.out
    assert "CONTAMINATED by ours, CONTAMINATED by source" in outcome.out
    assert "p           0.214 (Welch, two-sided); of equivalence 0.844" in outcome.out
    assert "neither a difference nor a null" in outcome.out


def test_numbers_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    flat = tmp_path / "flat.csv"
    flat.write_text("tag,rep,tps\na,1,39.3\na,2,39.3\nb,1,39.3\nb,2,39.3\n")
    outcome = nullarm("bench", "judge", flat)
    assert outcome.code == 0
    assert outcome.out.startswith("b against a: INSUFFICIENT_DATA · session CLEAN\n")
    assert "difference  none" in outcome.out
    assert "Brown–Forsythe p –" in outcome.out
    assert nullarm("bench", "judge", flat, "--json").json["ci"] is None


def test_the_control_can_be_named() -> None:
    data = nullarm("bench", "judge", CLEAN, "--control", "mcr", "--json").json
    assert data["name"] == "baseline against mcr"
    assert data["estimate"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument 'CSV'"),
        (("nowhere.csv",), 2, "'CSV': File 'nowhere.csv' does not exist"),
        ((CLEAN, "--control", "bseline"), 2, "no runs are tagged 'bseline' (did you mean 'baseline'?)"),
        ((CLEAN, "--rule", "mine"), 2, "'mine' is not one of 'ours', 'source'"),
        ((CLEAN, "--margin", -1), 2, "-1.0 is not in the range x>=0"),
        ((CLEAN, "--alpha", 0.5), 2, "0.5 is not in the range 0<x<0.5"),
        ((GOLDEN / "c2c_projector_state_dict.json",), 12, "has no column 'tag'"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[object, ...], code: int, words: str) -> None:
    outcome = nullarm("bench", "judge", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.error


def test_bench_alone_lists_what_it_can_do() -> None:
    outcome = nullarm("bench")
    assert outcome.code == 0
    assert "judge" in outcome.out
