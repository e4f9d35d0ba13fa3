"""Constructor signatures of the classes that configs name, read from their source without importing torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple


class SourceModule(NamedTuple):
    """A parsed module: its dotted name, its file and its syntax tree."""

    name: str
    file: Path
    tree: ast.Module


class ClassSignature(NamedTuple):
    """What a constructor takes.

    Attributes:
        name: name of the class.
        parameters: annotations by name; None where there is none.
        is_open: whether it takes further keywords, or inherits from a class whose source was not read.
        module: the module in which the annotations are resolved.
    """

    name: str
    parameters: dict[str, ast.expr | None]
    is_open: bool
    module: SourceModule


def find_class(path: str) -> ClassSignature | None:
    """Read the signature of a class by its public path, such as ``vwm.models.dit.DiT``; None where there is none."""
    package, _, name = path.rpartition(".")
    module = read_module(package)
    if module is None:
        return None
    home = _exporting_module(module, name)
    return None if home is None else class_signature(home, name)


def public_class_names(package: str) -> list[str]:
    """Return the names that a package or module offers, for suggestions."""
    module = read_module(package)
    if module is None:
        return []
    stub = module.file.with_suffix(".pyi")
    tree = ast.parse(stub.read_text()) if stub.is_file() else module.tree
    imported = [a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    return [*imported, *(node.name for node in tree.body if isinstance(node, ast.ClassDef))]


def class_signature(module: SourceModule, name: str) -> ClassSignature | None:
    """Read the signature of a class that a module defines or imports; None if its source is not available."""
    node = next((n for n in module.tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        return _imported_class(module, name)
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        parameters = {argument.arg: argument.annotation for argument in arguments}
        return ClassSignature(name, parameters, init.args.kwarg is not None, module)
    bases = [class_signature(module, base.id) for base in node.bases if isinstance(base, ast.Name)]
    if _has_fields(node):
        inherited = {key: value for base in bases if base for key, value in base.parameters.items()}
        return ClassSignature(name, inherited | _fields(node), False, module)
    known = [base for base in bases if base is not None and base.parameters]
    return known[0]._replace(name=name) if known else ClassSignature(name, {}, True, module)


@functools.cache
def read_module(name: str) -> SourceModule | None:
    """Parse a module or the ``__init__`` of a package without importing any part of it; None where there is none."""
    root, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    for file in (folder / "__init__.py", folder.with_suffix(".py")):
        if file.is_file():
            return SourceModule(name, file, ast.parse(file.read_text(encoding="utf-8")))
    return None


def resolve_alias(module: SourceModule, name: str) -> tuple[SourceModule, ast.expr] | None:
    """Return what a name stands for where a module assigns a type to it, such as ``Literal["a", "b"]``."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
    source = _import_source(module, name)
    return None if source is None else resolve_alias(*source)


def _exporting_module(package: SourceModule, name: str) -> SourceModule | None:
    stub = package.file.with_suffix(".pyi")
    if stub.is_file():
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
                return read_module(f"{package.name}.{node.module}")
    defines = any(isinstance(n, ast.ClassDef) and n.name == name for n in package.tree.body)
    return package if defines else None


def _imported_class(module: SourceModule, name: str) -> ClassSignature | None:
    source = _import_source(module, name)
    if source is None:
        return None
    home, original = source
    defining = home if any(getattr(n, "name", "") == original for n in home.tree.body) else None
    defining = defining or _exporting_module(home, original)
    return None if defining is None else class_signature(defining, original)


def _import_source(module: SourceModule, name: str) -> tuple[SourceModule, str] | None:
    source, original = _imports_of_vwm(module).get(name, ("", ""))
    home = read_module(source) if source else None
    return None if home is None else (home, original)


@functools.cache
def _imports_of_vwm(module: SourceModule) -> dict[str, tuple[str, str]]:
    """Map each name that a module imports from vwm to its module and its name there; the first import counts."""
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vwm."):
            for alias in node.names:
                imports.setdefault(alias.asname or alias.name, (node.module, alias.name))
    return imports


def _has_fields(node: ast.ClassDef) -> bool:
    decorators = [ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list]
    return "dataclass" in decorators or any(ast.unparse(base) == "NamedTuple" for base in node.bases)


def _fields(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    assigned = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return {n.target.id: n.annotation for n in assigned if isinstance(n.target, ast.Name)}
