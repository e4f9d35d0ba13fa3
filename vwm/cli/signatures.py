"""Signatures of command functions, read from their source: importing them would import torch, which takes seconds."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED: Any = inspect.Parameter.empty
SHARED_HELP = {"device": "where to compute: auto (a GPU if there is one), cpu, cuda, or one of several GPUs: cuda:1"}
"""Help of the parameters that mean the same in every command; it replaces that of their docstrings."""


class CommandParameter(NamedTuple):
    """One parameter of a command function."""

    name: str
    annotation: str
    """Source text of the annotation; aliases of other modules are replaced by their definitions."""
    default: Any
    """REQUIRED where there is none."""
    help: str
    group: str = ""
    """The function's parameter that holds it: a dataclass of settings, whose fields are options of the command."""


class CommandSignature(NamedTuple):
    """Description and parameters of a command, from which its help is made."""

    description: str
    parameters: tuple[CommandParameter, ...]


def read_signature(target: str) -> CommandSignature:
    """The parameters and the docstring of ``package.module:function``, without importing the module.

    A parameter whose default is made by a dataclass is replaced by the fields of the dataclass.
    """
    module, _, name = target.partition(":")
    tree = _parse_module(module)
    aliases = _AliasResolver(tree)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    description, helps = _split_docstring(ast.get_docstring(function) or "")
    arguments = function.args.args
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + function.args.defaults
    parameters = []
    for argument, default in zip(arguments, defaults, strict=True):
        assert argument.annotation is not None, f"{target}: {argument.arg} has no type"
        if isinstance(default, ast.Call) and ast.unparse(default.func) != "Path":
            parameters += _read_fields(ast.unparse(default.func), tree, argument.arg)
        else:
            parameters.append(_command_parameter(argument.arg, argument.annotation, default, helps, aliases))
    return CommandSignature(description, tuple(parameters))


def group_arguments(
    function: Callable[..., Any], signature: CommandSignature, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a command function: values of grouped parameters become fields of its dataclasses."""
    arguments: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for parameter in signature.parameters:
        found = groups.setdefault(parameter.group, {}) if parameter.group else arguments
        found[parameter.name] = values[parameter.name]
    defaults = inspect.signature(function).parameters
    return arguments | {name: dataclasses.replace(defaults[name].default, **found) for name, found in groups.items()}


def _command_parameter(
    name: str, annotation: ast.expr, default: ast.expr | None, helps: Mapping[str, str], aliases: _AliasResolver
) -> CommandParameter:
    return CommandParameter(
        name=name,
        annotation=ast.unparse(aliases.visit(annotation)),
        default=REQUIRED if default is None else _literal_default(default),
        help=SHARED_HELP.get(name, helps.get(name, "")),
    )


def _read_fields(name: str, tree: ast.Module, group: str) -> list[CommandParameter]:
    """Read the fields of a dataclass that a module defines or imports."""
    aliases = _AliasResolver(tree)
    node = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if node is None:
        module, original = aliases.imported[name]
        return _read_fields(original, _parse_module(module), group)
    _, helps = _split_docstring(ast.get_docstring(node) or "")
    parameters = []
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            parameter = _command_parameter(field.target.id, field.annotation, field.value, helps, aliases)
            parameters.append(parameter._replace(group=group))
    return parameters


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
    """The text before the sections, and the descriptions under ``Args:`` or ``Attributes:``."""
    description = re.split(r"\n\s*(?:Args|Attributes|Returns|Raises):\n", text)[0].strip()
    section = re.search(r"\n(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)*)", text + "\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        if start := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names, line = start[1].split(", "), start[2]
        for name in names:
            helps[name] = f"{helps.get(name, '')} {line.strip()}".strip()
    return description, helps
