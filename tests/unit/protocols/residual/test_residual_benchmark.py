"""What `benchmarks/residual_capture.py` compares measures the same things."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[4] / "benchmarks" / "residual_capture.py"
TINY = ("--shape=tiny-qwen2", "--layers=2", "--prompts=2", "--tokens=5", "--rounds=1")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = spec_from_file_location("benchmark_residual_capture", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(benchmark: Any) -> tuple[Any, Any, Any]:
    """Ours and the loop's numbers of two prompts, and the loop's of the second one alone."""
    with torch.no_grad():
        ways, ids = benchmark.Ways(benchmark.arguments(TINY)), torch.tensor([[5, 9, 5, 300, 12], [3, 4, 700, 8, 8]])
        return benchmark.numbers_of(ways.nullarm(ids)), ways.loop(ids), ways.loop(ids[1:])


def test_capture_agrees_with_the_plain_loop(benchmark: Any, measured: tuple[Any, Any, Any]) -> None:
    ours, theirs, second = measured
    assert ours["kl_div"].shape == (2, 10)
    assert ours["increased"].shape == (2, 10, benchmark.TOP_K)
    benchmark.require_agreement(ours, theirs, "loop", 1e-4)
    benchmark.require_agreement({name: values[:, 5:] for name, values in ours.items()}, second, "loop", 1e-4)


def test_a_difference_is_refused(benchmark: Any, measured: tuple[Any, Any, Any]) -> None:
    ours, theirs, _ = measured
    wrong = theirs | {"js": theirs["js"] + 1e-3}
    with pytest.raises(SystemExit, match=r"nullarm and loop do not agree in 'js': 1\.0e-03 off, 0\.0001 allowed"):
        benchmark.require_agreement(ours, wrong, "loop", 1e-4)
    with pytest.raises(SystemExit, match=r"nullarm and loop do not agree in 'js': nan off"):
        benchmark.require_agreement(ours, theirs | {"js": theirs["js"] * torch.nan}, "loop", 1e-4)


def test_a_missing_metric_is_refused(benchmark: Any, measured: tuple[Any, Any, Any]) -> None:
    ours, theirs, _ = measured
    fewer = {name: values for name, values in theirs.items() if name != "cosine"}
    with pytest.raises(SystemExit, match=r"loop does not measure \['cosine'\]"):
        benchmark.require_agreement(ours, fewer, "loop", 1e-4)


def test_a_missing_library_is_named(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("nnsight", "transformer_lens", "transformer_lens.model_bridge"):
        monkeypatch.setitem(sys.modules, library, None)  # not to be imported
    options = benchmark.arguments(TINY)
    with torch.no_grad():
        benchmark.print_table(options, benchmark.measure(options), [100, 100])
    lines = capsys.readouterr().out.splitlines()
    for way in ("TransformerLens", "nnsight"):
        [line] = [line for line in lines if line.startswith(way)]
        assert line.endswith("not installed: pip install -e '.[peers]'")
