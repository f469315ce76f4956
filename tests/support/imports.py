"""Who imports whom, read from the source without importing anything."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

Moment = Literal["loading", "calling", "typing"]
"""When an import happens: while its module is loaded, when a function is called, or never (type checking only)."""


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    module: str
    line: int
    target: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


class Imports:
    """All imports of the package in `directory`, whose name is that of the directory."""

    def __init__(self, directory: Path) -> None:
        self.package = directory.name
        files = {_module_name(path, directory): path for path in sorted(directory.rglob("*.py"))}
        self.modules = frozenset(files)
        self.all = [found for name, path in files.items() for found in self._of(name, path)]

    def inside(self, *moments: Moment) -> list[Import]:
        """Imports of the package's own modules at these moments."""
        return [i for i in self.all if i.moment in moments and i.target.split(".")[0] == self.package]

    def outside(self, *moments: Moment) -> list[Import]:
        """Imports of other packages, the standard library left out."""
        mine = {self.package, *sys.stdlib_module_names}
        return [i for i in self.all if i.moment in moments and i.target.split(".")[0] not in mine]

    def loaded_with(self, module: str) -> frozenset[str]:
        """The package's modules that are loaded when `module` is, itself and the packages around them included."""
        targets: dict[str, list[str]] = {}
        for found in self.inside("loading"):
            targets.setdefault(found.module, []).append(found.target)
        loaded: set[str] = set()
        frontier = [module]
        while frontier:
            name = frontier.pop()
            if name not in loaded:
                loaded.add(name)
                frontier += targets.get(name, [])
                frontier += [name.rpartition(".")[0]] if "." in name else []
        return frozenset(loaded)

    def cycle(self) -> list[str] | None:
        """Modules that wait for each other while they are loaded, or None."""
        graph: dict[str, set[str]] = {name: set() for name in self.modules}
        for found in self.inside("loading"):
            graph[found.module].add(found.target)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return list(error.args[1])
        return None

    def _of(self, name: str, path: Path) -> Iterator[Import]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, moment in _imports(tree, "loading"):
            for target in self._targets(name, path, node):
                yield Import(name, node.lineno, target, moment)

    def _targets(self, name: str, path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            above = name.split(".")[: len(name.split(".")) - node.level + (path.name == "__init__.py")]
            base = ".".join([*above, *([base] if base else [])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in self.modules else base


def _module_name(path: Path, directory: Path) -> str:
    parts = path.relative_to(directory.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(node: ast.AST, moment: Moment) -> Iterator[tuple[ast.Import | ast.ImportFrom, Moment]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, moment
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, "calling" if moment == "loading" else moment)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), moment)
        else:
            yield from _imports(child, moment)
