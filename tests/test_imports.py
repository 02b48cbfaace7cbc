"""The layout of the package: no import circles, and imports between its parts run one way."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, Iterator, List, Set

import mdistiller

ROOT = Path(mdistiller.__file__).parent
# From top to bottom: a module may import from its own part and from those below it. The longest prefix counts.
PARTS = (
    "commands",
    "api",
    "study",
    "benchmark",
    "report",
    "export",
    "engine",
    "engine.log",
    "engine.evaluation",
    "engine.solver",
    "engine.networks",
    "engine.run",
    "engine.checkpoint",
    "engine.speed",
    "engine.cfg",
    "distillers",
    "dataset",
    "dataset.shards",
    "dataset.tables",
    "dataset.folders",
    "dataset.loading",
    "dataset.augment",
    "dataset.images",
    "models",
    "",  # modules directly in the package
)
SHARED = ("dataset.info", "dataset.options")  # plain descriptions that the parts of `dataset` have in common


def modules() -> Dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "shipped" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, in functions too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            base = [part for part in base if part]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                target = inner if inner in known else ".".join(base)
                if target != name:
                    yield target


def part_of(name: str) -> int:
    prefixes = [i for i, part in enumerate(PARTS) if not part or name == part or name.startswith(f"{part}.")]
    return max(prefixes, key=lambda i: len(PARTS[i]))


def circle(graph: Dict[str, Set[str]]) -> List[str]:
    """Return the modules of a circle of imports, or an empty list."""
    done: Set[str] = set()

    def visit(name: str, path: List[str]) -> List[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for target in sorted(graph[name]):
            found = visit(target, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


def graph() -> Dict[str, Set[str]]:
    known = modules()
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}
    assert graph.pop("") == {"api"}  # the package imports its Python API on first use, which closes no circle
    return {name: targets - {""} for name, targets in graph.items()}


def test_no_import_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    # A package's __init__ collects what its modules offer; modules import from each other, not from it.
    assert circle(graph()) == []


def test_imports_run_one_way() -> None:
    upward = [
        f"{name} → {target}"
        for name, targets in sorted(graph().items())
        for target in sorted(targets)
        if part_of(target) < part_of(name) and target not in SHARED
    ]
    assert upward == []
