"""The grammar of every command: positional arguments, ``--options VALUE`` and ``--switches``, made from a signature.

Required parameters are positional. A ``bool`` is a switch: ``--best`` where it is off by default, ``--no-keep-video``
where it is on. Dashes and underscores are both accepted.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vwm.cli.signatures import REQUIRED, CommandParameter, CommandSignature
from vwm.core.suggestions import suggest

SHORT_OPTIONS = {"out": "-o", "batch_size": "--batch"}
"""A second name of a parameter, the same in every command."""
TYPE_DESCRIPTIONS = {"int": "a whole number", "float": "a number", "dict": "a mapping, such as '{key: value}'"}


class UsageError(ValueError):
    """A command line that cannot be understood; the message names the argument, its value and the remedy."""


class CommandParser(argparse.ArgumentParser):
    """argparse with short messages, a suggestion for a mistyped option, and no abbreviations."""

    def __init__(self, prog: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog="examples:\n  " + "\n  ".join(examples),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def parse_command(self, argv: Sequence[str]) -> dict[str, Any]:
        """The function's arguments. Raises UsageError."""
        argv = [normalize_option(text) for text in argv]
        options = self._option_string_actions
        for text, following in zip(argv, [*argv, ""][1:], strict=True):
            name = text.partition("=")[0]
            if name.startswith("--") and name not in options:
                raise UsageError(f"no option {name}{suggest(name, options)}; {self.prog} --help lists the options")
            if name in options and options[name].nargs == 0 and following.lower() in ("true", "false"):
                raise UsageError(f"{name} is a switch: remove {following}, and leave {name} out to keep the default")
        return vars(self.parse_args(argv))

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage of a dozen lines."""
        raise UsageError(f"{message.removeprefix('argument ')}; {self.prog} --help shows the arguments")


def make_command_parser(prog: str, signature: CommandSignature, examples: Sequence[str]) -> CommandParser:
    """The parser of a command function."""
    parser = CommandParser(prog, signature.description, examples)
    for parameter in signature.parameters:
        _add_parameter(parser, parameter)
    return parser


def normalize_option(text: str) -> str:
    """``--frame_skip=4`` as ``--frame-skip=4``; anything else as it is."""
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else text


def _add_parameter(parser: CommandParser, parameter: CommandParameter) -> None:
    name, annotation, default, text, _ = parameter
    text = _escape(text)
    node = ast.parse(annotation, mode="eval").body
    dashed = name.replace("_", "-")
    if default is REQUIRED:
        many = annotation == "list[str]"
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=str if many else value_parser(node),
            nargs="+" if many else None,
            help=text,
        )
    elif annotation == "bool":
        options = [f"--no-{dashed}"] if default else [f"--{dashed}"]
        action = "store_false" if default else "store_true"
        parser.add_argument(*options, dest=name, action=action, help=text)
    else:
        short = SHORT_OPTIONS.get(name)
        options = [f"--{dashed}"] if short is None else [short, f"--{dashed}"]
        shown = text if default is None else f"{text} (default: {_escape(default)})"
        parser.add_argument(
            *options,
            dest=name,
            metavar=_metavar(node),
            type=value_parser(node),
            default=default,
            help=shown,
        )


def value_parser(annotation: ast.expr) -> Callable[[str], Any]:
    """Return a function that converts text to the annotated type; it raises ArgumentTypeError if it cannot."""

    def parse(text: str) -> Any:
        for member in _union_members(annotation):
            try:
                return _parse_member(text, member)
            except (ValueError, yaml.YAMLError):
                continue
        raise argparse.ArgumentTypeError(f"{text!r} must be {describe_type(annotation)}")

    return parse


def describe_type(annotation: ast.expr) -> str:
    """The type in words, such as ``a whole number or all``."""
    words = []
    for member in _union_members(annotation):
        kind = _kind(member)
        if kind == "Literal":
            words.append(f"one of {', '.join(_choices(member))}")
        elif kind == "list":
            assert isinstance(member, ast.Subscript)
            words.append(f"a list, such as a,b or '[a, b]', each {describe_type(member.slice)}")
        else:
            words.append(TYPE_DESCRIPTIONS.get(kind, "null" if kind == "None" else "text"))
    return " or ".join(words)


def _parse_member(text: str, member: ast.expr) -> Any:
    kind = _kind(member)
    if kind == "None":
        if text == "null":
            return None
    elif kind == "Literal":
        if text in _choices(member):
            return text
    elif kind in ("int", "float"):
        return {"int": int, "float": float}[kind](text)
    elif kind == "Path":
        return Path(text)
    elif kind == "str":
        return text
    elif kind in ("list", "dict"):
        return _parse_container(text, member)
    raise ValueError(text)


def _load_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(text) from None


def _parse_container(text: str, member: ast.expr) -> Any:
    assert isinstance(member, ast.Subscript)
    if _kind(member) == "list":
        values = _load_yaml(text) if text.startswith("[") else text.split(",")
        return [value_parser(member.slice)(str(value)) for value in values]
    values = _load_yaml(text)
    if not isinstance(values, dict):
        raise ValueError(text)
    assert isinstance(member.slice, ast.Tuple)
    key_type, value_type = member.slice.elts
    if _kind(value_type) == "Any":
        return values
    return {value_parser(key_type)(str(k)): value_parser(value_type)(str(v)) for k, v in values.items()}


def _union_members(annotation: ast.expr) -> list[ast.expr]:
    """The types of ``A | B``; numbers are tried before text, and None first."""
    if not isinstance(annotation, ast.BinOp):
        return [annotation]
    members = [*_union_members(annotation.left), *_union_members(annotation.right)]
    return sorted(members, key=lambda member: (_kind(member) == "str", _kind(member) != "None"))


def _kind(member: ast.expr) -> str:
    return ast.unparse(member.value if isinstance(member, ast.Subscript) else member)


def _choices(member: ast.expr) -> list[str]:
    assert isinstance(member, ast.Subscript)
    values = ast.literal_eval(member.slice)
    return list(values) if isinstance(values, tuple) else [values]


def _metavar(annotation: ast.expr) -> str:
    """``N`` for whole numbers, ``X`` for numbers, the choices in braces."""
    words = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT", "list": "A,B", "dict": "'{KEY: VALUE}'"}
    shown = []
    for member in _union_members(annotation):
        if _kind(member) != "None":
            choices = _kind(member) == "Literal"
            shown.append("{" + ",".join(_choices(member)) + "}" if choices else words[_kind(member)])
    return "|".join(shown)


def _escape(shown: object) -> str:
    """The text with its percent signs doubled, which argparse would take for the start of a format."""
    return str(shown).replace("%", "%%")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, and shows an option's metavar once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, '')}"
