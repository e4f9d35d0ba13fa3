"""Code outside a family's package uses its ``WorldFamily`` only: it tests for no class and accesses no network."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "vwm"
CONSUMERS = ("worlds", "planning", "rl", "eval", "play", "train", "cli")
SIMULATOR_NAMES = ("simulator", "world", "module", "pl_module", "model")
"""Names of variables and attributes that hold a simulator or a Lightning module."""
ALLOWED_ACCESSES = {
    ("rl/algorithms/tdmpc2.py", "self.world.encoder"): "the agent's own network, not a simulator",
}


@cache
def trees() -> dict[Path, ast.Module]:
    """The parsed modules of the package."""
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def class_bases() -> tuple[dict[str, Path], dict[str, set[str]]]:
    """Every class's file, and the names of its bases; class names are unique in the package."""
    files, bases = {}, {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                files[node.name] = path
                bases[node.name] = {last_name(base) for base in node.bases}
    return files, bases


def last_name(node: ast.expr) -> str:
    """``C`` of ``C``, ``a.b.C`` and ``C[T]``."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def descendants(root: str, bases: dict[str, set[str]]) -> set[str]:
    names = {root}
    while new := {name for name, of in bases.items() if of & names} - names:
        names |= new
    return names


@cache
def family_classes() -> dict[str, Path]:
    """The classes of families, and their packages."""
    files, bases = class_bases()
    return {
        name: files[name].parent
        for root in ("Simulator", "TrainingModule")
        for name in descendants(root, bases)
        if files[name].parent.name not in ("core", "nn")  # these are the contracts
    }


def _classes_tested_for(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of classes that a module tests for, with their lines."""
    for node in ast.walk(tree):
        tested: list[ast.AST] = []
        if isinstance(node, ast.Call) and last_name(node.func) in ("isinstance", "issubclass"):
            tested = [node.args[1]]
        elif isinstance(node, ast.Compare) and "type" in {
            last_name(side.func) for side in (node.left, *node.comparators) if isinstance(side, ast.Call)
        }:
            tested = [node]
        elif isinstance(node, ast.MatchClass):
            tested = [node.cls]
        for part in tested:
            for name in ast.walk(part):
                if isinstance(name, ast.Name | ast.Attribute):
                    yield node.lineno, last_name(name)


def test_family_classes_and_network_names_are_found() -> None:
    families, networks = set(family_classes()), network_names()
    assert {"GenieSimulator", "DiTModule", "GenieFinetuning", "EnsembleSimulator", "TokenizerModule"} <= families
    assert not {"Simulator", "NetworkSimulator", "VideoSimulator", "TrainingModule"} & families
    assert {"dynamics", "tokenizer", "latent_action", "outcomes", "projector"} <= networks and "policy" not in networks


def test_no_class_of_a_family_is_tested_for_outside_its_package() -> None:
    violations = [
        f"{path.relative_to(ROOT)}:{line} tests for {name}"
        for path, tree in trees().items()
        for line, name in _classes_tested_for(tree)
        if path.parent != family_classes().get(name, path.parent)
    ]
    assert not violations, (
        f"{violations}: ask the family (vwm.worlds.families.find_family) or a protocol of core.capabilities"
    )


def test_no_family_class_is_identified_by_its_name() -> None:
    """Such as ``type(x).__name__ == "GenieSimulator"``, or a class name as a key."""
    names = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and path.parent != family_classes().get(node.value, path.parent)
    }
    assert not names


@cache
def network_names() -> set[str]:
    """Attributes under which families keep their networks, except those that a protocol describes."""
    names = {"predictor", "target_encoder", "transformer"}
    for node in (node for tree in trees().values() for node in ast.walk(tree)):
        if isinstance(node, ast.AnnAssign) and last_name(node.target) == "NETWORK_NAMES" and node.value is not None:
            names |= set(ast.literal_eval(node.value))
    capabilities = ast.walk(trees()[ROOT / "core" / "capabilities.py"])
    return names - {last_name(node.target) for node in capabilities if isinstance(node, ast.AnnAssign)}


def test_no_consumer_accesses_the_networks_of_a_simulator_or_module() -> None:
    violations, used, networks = defaultdict(list), set(), network_names()
    for path, tree in trees().items():
        file = path.relative_to(ROOT).as_posix()
        if file.partition("/")[0] not in CONSUMERS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in networks and last_name(node.value) in SIMULATOR_NAMES:
                access = ast.unparse(node)
                if (file, access) in ALLOWED_ACCESSES:
                    used.add((file, access))
                else:
                    violations[file].append(f"{node.lineno}: {access}")
            if isinstance(node, ast.Call) and last_name(node.func) in ("getattr", "hasattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant) and name.value in networks:
                    violations[file].append(f"{node.lineno}: {ast.unparse(node)}")
    assert not violations, f"{dict(violations)}: let the family or a protocol of core.capabilities give it"
    assert used == set(ALLOWED_ACCESSES), "remove the exceptions that are no longer needed"
