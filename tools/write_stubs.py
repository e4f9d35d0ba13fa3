"""Write the ``__init__.pyi`` of every package of vwm, which say what it re-exports without importing it.

Each package re-exports its public classes, and the functions that other packages use. Run it after adding, moving or
renaming one; a test fails if a stub is out of date.

    python tools/write_stubs.py
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1] / "vwm"


def main() -> None:
    """Write every stub that differs from what the modules define."""
    for path, text in stubs(ROOT).items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT.parent)}")


def stubs(root: Path) -> dict[Path, str]:
    """Text of the stub of every package that exports something, by path."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}
    imported = imported_elsewhere(trees, root)
    lines: dict[Path, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        if path.name == "__init__.py" or path.parent == root:
            continue
        taken = {other.stem for other in path.parent.iterdir()}  # a submodule hides an equal name
        for name in sorted(exports(tree, imported[module_of(path, root)]) - taken):
            lines[path.parent / "__init__.pyi"].append(f"from .{path.stem} import {name} as {name}\n")
    return {path: "".join(text) for path, text in lines.items()}


def exports(tree: ast.Module, imported: set[str]) -> set[str]:
    """Public classes of a module, and those of its public functions that other packages import."""
    public = [node for node in tree.body if not getattr(node, "name", "_").startswith("_")]
    classes = {node.name for node in public if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in public if isinstance(node, ast.FunctionDef)}
    return classes | (functions & imported)


def imported_elsewhere(trees: dict[Path, ast.Module], root: Path) -> dict[str, set[str]]:
    """What other packages import of each module, by the module's dotted name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        package = module_of(path, root).rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.rpartition(".")[0] != package:
                found[node.module].update(alias.name for alias in node.names)
    return found


def module_of(path: Path, root: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(root.parent).with_suffix("").parts)


if __name__ == "__main__":
    main()
