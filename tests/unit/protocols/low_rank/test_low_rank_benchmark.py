"""`benchmarks/low_rank.py` runs, and refuses to time ways that do not find the same."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[4] / "benchmarks" / "low_rank.py"
TINY = ("--shape=tiny-llama", "--layers=2", "--tokens=600", "--rounds=1", "--repeats=1")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = spec_from_file_location("benchmark_low_rank", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_way_is_measured(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    slots = ["--slots", "k", "v", "down"]
    options = benchmark.arguments([*TINY, *slots])
    compression = benchmark.measure_compression(options)
    assert compression.keys() == {"k, v", "down", "layer"}
    down, layer = compression["down"], compression["layer"]
    assert down["svd"]["calibrate"] == 0 < down["svd_llm"]["calibrate"]
    assert down["svd_llm"]["error"] > down["torch.linalg.svd"]["error"] > 0.1  # 21 of 32 ranks
    assert layer["svd"]["decompose"] == pytest.approx(
        2 * compression["k, v"]["svd"]["decompose"] + down["svd"]["decompose"]
    )
    assert layer["svd"]["peak_bytes"] > 50e6  # torch alone is more
    benchmark.print_compression(options, compression)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines if "torch.linalg.svd" in line] == ["1.00"] * 3
    assert lines[-1].endswith("MB, ≤ 1500: holds")


def test_tokens_go_through_every_kind_of_layer(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = benchmark.arguments(TINY)
    times = benchmark.measure_tokens(options)
    assert times.keys() == {"dense", "svd", "grc", "svd at half"}
    kinds = {name: type(model.model.layers[1].self_attn.k_proj).__name__ for name, model in benchmark.models(options)}
    assert kinds == {"dense": "Linear", "svd": "FactoredLinear", "grc": "SharedLinear", "svd at half": "FactoredLinear"}
    benchmark.print_tokens(options, times)
    assert capsys.readouterr().out.splitlines()[2].endswith("1.00")


def test_ways_that_differ_are_refused(benchmark: Any) -> None:
    figures = {"svd": {"error": 0.31}, "torch.linalg.svd": {"error": 0.3}}
    with pytest.raises(SystemExit, match=r"svd and torch\.linalg\.svd do not agree on q: errors 0\.310000 and 0\.3"):
        benchmark.require_agreement(figures, "q")


def test_a_peak_beyond_the_goal_is_said(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {**dict.fromkeys(benchmark.PHASES, 1.0), "peak_bytes": 1.6e9}
    benchmark.print_compression(benchmark.arguments(TINY), {"layer": dict.fromkeys(benchmark.WAYS, figures)})
    assert capsys.readouterr().out.endswith("1600 MB, ≤ 1500: does not hold\n")
