"""Signatures of command functions, read from their source: importing them would import torch, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED: Any = inspect.Parameter.empty
SHARED_HELP = {"device": "where to compute: auto (a GPU if there is one), cpu, cuda, or one of several GPUs: cuda:1"}
"""Help of the parameters that mean the same in every command; it replaces that of their docstrings."""


class CommandParameter(NamedTuple):
    """One parameter of a command function."""

    name: str
    annotation: str
    """As source text; aliases of other modules are replaced by what they stand for."""
    default: Any
    """REQUIRED where there is none."""
    help: str


class CommandSignature(NamedTuple):
    """What the help of a command is made from."""

    description: str
    parameters: tuple[CommandParameter, ...]


def read_signature(target: str) -> CommandSignature:
    """The parameters and the docstring of ``package.module:function``, without importing the module."""
    module, _, name = target.partition(":")
    tree = _parse_module(module)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    description, helps = _split_docstring(ast.get_docstring(function) or "")
    helps |= SHARED_HELP
    arguments = function.args.args
    defaults = [REQUIRED] * (len(arguments) - len(function.args.defaults)) + [
        _literal_default(node) for node in function.args.defaults
    ]
    parameters = []
    for argument, default in zip(arguments, defaults, strict=True):
        assert argument.annotation is not None, f"{target}: {argument.arg} has no type"
        annotation = ast.unparse(_AliasResolver(tree).visit(argument.annotation))
        parameters.append(CommandParameter(argument.arg, annotation, default, helps.get(argument.arg, "")))
    return CommandSignature(description, tuple(parameters))


def _parse_module(name: str) -> ast.Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _literal_default(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path":
        return Path(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


class _AliasResolver(ast.NodeTransformer):
    """Replaces names such as ``LatentMetric`` by the ``Literal[...]`` that their module assigns to them."""

    def __init__(self, tree: ast.Module) -> None:
        self.assigned = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vwm.")
            for alias in node.names
        }

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.assigned:
            return self.assigned[node.id]
        if node.id in self.imported:
            module, name = self.imported[node.id]
            return _AliasResolver(_parse_module(module)).visit(ast.Name(name))
        return node


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the sections, and the descriptions under ``Args:``."""
    description = re.split(r"\n\s*(?:Args|Returns|Raises):\n", text)[0].strip()
    section = re.search(r"\nArgs:\n((?:[ ]+.*\n?|\n)*)", text + "\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        if start := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names, line = start[1].split(", "), start[2]
        for name in names:
            helps[name] = f"{helps.get(name, '')} {line.strip()}".strip()
    return description, helps
