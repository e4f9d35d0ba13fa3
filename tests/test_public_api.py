"""Public names are defined once, and each package re-exports its own."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "vwm").rglob("__init__.pyi"))
LIGHTNING_MODULES = ("module", "datamodule", "training_module")
"""Stems of modules that may import Lightning: training modules, data modules, and their base class."""


def load_write_stubs():
    spec = importlib.util.spec_from_file_location("write_stubs", ROOT / "tools" / "write_stubs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_public_name_is_defined_twice():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "vwm").rglob("*.py")]
    names = Counter(
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_stubs_are_up_to_date():
    stale = [path for path, text in load_write_stubs().stubs(ROOT / "vwm").items() if path.read_text() != text]
    assert not stale, f"run python tools/write_stubs.py: {stale}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_re_exported_name_can_be_imported(package):
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        try:
            assert getattr(module, name).__name__ == name
        except ImportError as error:  # an optional dependency
            pytest.importorskip(error.name)


def test_networks_do_not_import_lightning_or_wandb():
    for package in ("core", "nn", "data", "envs", "tokenizers", "models", "worlds", "planning"):
        for path in (ROOT / "vwm" / package).rglob("*.py"):
            imported = {
                alias.name if isinstance(node, ast.Import) else node.module
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            roots = {name.partition(".")[0] for name in imported if name}
            assert path.stem in LIGHTNING_MODULES or not roots & {"lightning", "wandb"}, path
