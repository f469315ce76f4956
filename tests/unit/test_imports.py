"""Imports go one way, and what is only planned, stored or shown never loads torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nullarm
from nullarm.protocols import BUILT_IN
from support.imports import Imports

IMPORTS = Imports(Path(nullarm.__file__).parent)

ROOMS = {
    "errors": set(),
    "study": {"errors"},
    "stats": {"errors"},
    "models": {"errors"},
    "store": {"errors", "study"},
    "sites": {"errors", "study"},
    "bench": {"errors", "study", "store", "stats", "models"},
    "report": {"errors", "study", "store"},
    "training": {"errors", "store"},
    "engines": {"errors", "study", "store", "sites"},
    "analysis": {"errors", "study", "store", "stats"},
    "protocols": {"errors", "study", "store", "sites", "stats", "models", "training", "report", "analysis",
                  "bench"},
    "runner": {"errors", "study", "store", "engines"},
    "worker": {"errors", "study", "store", "sites", "training", "protocols"},
    "conduct": {"errors", "study", "store", "engines", "report", "analysis", "protocols", "runner"},
    "cli": {"errors", "study", "store", "sites", "stats", "engines", "training", "analysis", "protocols", "runner",
            "conduct", "bench"},
}  # fmt: skip
"""Each room, and the rooms it may import, at whatever moment. Every room may read `nullarm.__version__`."""

EXCEPTIONS = {("nullarm.engines.inline", "nullarm.worker")}
"""The inline engine is the worker in this process; it imports it when it runs a cell."""

HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes"}

LIGHT_ROOMS = set(ROOMS) - {"models", "training", "protocols"}

RUNNING = {f"nullarm.bench.{name}" for name in ("decoding", "instruments", "sentinel", "stopwatch")}
"""What runs models or kernels; the rest of its room is planned with and judged by."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def wrong_ways(imports: Imports, rooms: dict[str, set[str]]) -> list[str]:
    """Imports from one room into another that it may not know."""
    return [
        str(found)
        for found in imports.inside("loading", "calling")
        if room(found.module) not in ("", "__main__", room(found.target))
        and room(found.target) not in {"", *rooms[room(found.module)]}
        and (found.module, found.target) not in EXCEPTIONS
    ]


def heavy_imports(imports: Imports, module: str) -> list[str]:
    """Imports of heavy packages that loading `module` sets off, directly or not."""
    loaded = imports.loaded_with(module)
    return [str(i) for i in imports.outside("loading") if i.module in loaded and i.target.split(".")[0] in HEAVY]


def test_imports_go_one_way() -> None:
    assert wrong_ways(IMPORTS, ROOMS) == []


def test_every_room_is_in_the_table_and_the_table_has_no_circle() -> None:
    assert {room(module) for module in IMPORTS.modules} - {"", "__main__"} == set(ROOMS)
    known: set[str] = set()
    for name, allowed in ROOMS.items():
        assert allowed <= known, f"{name} may import a room below it"
        known.add(name)


def test_no_modules_wait_for_each_other() -> None:
    assert IMPORTS.cycle() is None


def test_the_exceptions_are_still_needed() -> None:
    made = {(i.module, i.target) for i in IMPORTS.inside("calling")}
    assert made >= EXCEPTIONS
    assert not {(i.module, i.target) for i in IMPORTS.inside("loading")} & EXCEPTIONS


@pytest.mark.parametrize("module", sorted(m for m in IMPORTS.modules if room(m) in LIGHT_ROOMS and m not in RUNNING))
def test_loading_it_loads_no_torch(module: str) -> None:
    assert heavy_imports(IMPORTS, module) == []


@pytest.mark.parametrize("protocol", BUILT_IN)
def test_planning_a_protocol_loads_no_torch(protocol: str) -> None:
    assert heavy_imports(IMPORTS, BUILT_IN[protocol].partition(":")[0]) == []


def test_statistics_know_arrays_only() -> None:
    packages = {i.target.split(".")[0] for i in IMPORTS.outside("loading", "calling") if room(i.module) == "stats"}
    assert packages == {"numpy", "scipy", "statsmodels"}


def test_only_the_named_packages_are_needed_to_study_and_store() -> None:
    packages = {
        i.target.split(".")[0] for i in IMPORTS.outside("loading", "calling") if room(i.module) in ("study", "store")
    }
    assert packages == {"pydantic", "yaml", "pyarrow", "psutil"}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A little package in order: `cli` over `store` over `errors`."""
    files = {
        "__init__.py": "",
        "errors.py": "import os",
        "store/__init__.py": "from .files import read",
        "store/files.py": "from __future__ import annotations\nfrom house.errors import Bad\nimport json",
        "cli/__init__.py": "import typing as t\nif t.TYPE_CHECKING:\n    import torch\ndef run(): import torch",
        "cli/show.py": "from house import store\nimport house.cli",
    }
    for name, text in files.items():
        (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "house" / name).write_text(text)
    return tmp_path / "house"


LITTLE: dict[str, set[str]] = {"errors": set(), "store": {"errors"}, "cli": {"errors", "store"}}


def test_a_house_in_order_has_no_faults(house: Path) -> None:
    imports = Imports(house)
    assert wrong_ways(imports, LITTLE) == []
    assert imports.cycle() is None
    assert heavy_imports(imports, "house.cli.show") == []
    assert imports.loaded_with("house.cli.show") == {
        "house", "house.cli", "house.cli.show", "house.store", "house.store.files", "house.errors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("errors.py", "from house.store.files import read", "house.errors:1 imports house.store.files"),
        ("errors.py", "import house.cli.show", "house.errors:1 imports house.cli.show"),
        ("store/files.py", "def f():\n    from house import cli", "house.store.files:2 imports house.cli"),
        ("store/files.py", "try:\n    from ..cli import show\nexcept ImportError: pass", "house.store.files:2 imports"),
    ],
)
def test_an_import_that_goes_the_wrong_way_is_found(house: Path, file: str, text: str, fault: str) -> None:
    (house / file).write_text(text)
    (found,) = wrong_ways(Imports(house), LITTLE)
    assert found.startswith(fault)


def test_modules_that_wait_for_each_other_are_found(house: Path) -> None:
    (house / "errors.py").write_text("from house.cli import show")
    cycle = Imports(house).cycle()
    assert cycle is not None
    assert {"house.errors", "house.cli.show"} <= set(cycle)


@pytest.mark.parametrize("text", ["import torch", "from torch.nn import Linear", "class A:\n    import transformers"])
def test_a_heavy_import_is_found_wherever_it_is_loaded_from(house: Path, text: str) -> None:
    (house / "store" / "files.py").write_text(text)
    imports = Imports(house)
    assert len(heavy_imports(imports, "house.store.files")) == 1
    assert len(heavy_imports(imports, "house.cli.show")) == 1
    assert heavy_imports(imports, "house.errors") == []


def test_what_is_imported_for_typing_or_in_a_function_is_not_loaded(house: Path) -> None:
    imports = Imports(house)
    assert [i.moment for i in imports.outside("loading", "calling", "typing")] == ["typing", "calling"]


def test_planning_the_shipped_study_really_loads_no_torch() -> None:
    """What the source promises, seen in a fresh interpreter."""
    code = "import sys; from nullarm.conduct import prepare; prepare('rank_mechanism_tiny'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "nullarm" in loaded
    assert loaded & HEAVY == set()
