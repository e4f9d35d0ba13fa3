"""Checks of a config and its overrides against the classes that it names, before torch and Lightning are imported.

A mistyped key or a value of a wrong type is reported in a fraction of a second and by its full name. What cannot be
decided from the source (a type of another package, a value that a class checks itself) is left to the parser.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vwm.cli.argument_checks import check_data, check_folder_or_bundle
from vwm.cli.class_signatures import (
    ClassSignature,
    SourceModule,
    class_signature,
    find_class,
    public_class_names,
    resolve_alias,
)
from vwm.cli.config_arguments import SHORT_NAMES
from vwm.cli.parser import UsageError
from vwm.cli.setting_ranges import check_setting_choice, check_setting_range
from vwm.core.suggestions import suggest
from vwm.runs.config_files import check_yaml_size, load_config, merge_configs, split_config_files

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
CALLBACKS = {"checkpoint": "vwm.train.ResumableCheckpoints", "ema": "vwm.train.EMACallback"}
CALLBACKS |= {"samples": "vwm.train.SampleVideos", "watchdog": "vwm.train.Watchdog"}
OPTIONS = {"compile", "wandb", "wandb_online", "tensorboard", "config", "c", "print_config", "help", "h"}
TOP_LEVEL = {
    "fit": OPTIONS
    | {
        "run",
        "resume",
        "no_resume",
        "threads",
        "gradient_checkpointing",
        "float8",
        "encode_ahead",
        "context_parallel",
        "tensor_parallel",
        "global_batch",
        "seed_everything",
        "optimizer",
    }
    | {"lr_scheduler", "trainer", "model", "data", *CALLBACKS},
    "agent train": OPTIONS | {"precision"},
}
ESTIMATE_KEYS = {
    "ranks",
    "context_parallel",
    "tensor_parallel",
    "global_batch",
    "hours",
    "fps",
    "stored_bytes",
    "kernels",
    "json",
    "cluster",
}
TOP_LEVEL["estimate"] = TOP_LEVEL["fit"] | ESTIMATE_KEYS
"""Top-level keys by command; those of ``vwm agent train`` are also the parameters of ``AgentTraining``."""
LISTS = {"list", "tuple", "Sequence", "Iterable", "List", "Tuple"}
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path"}


def check_config_arguments(command: str, argv: Sequence[str]) -> None:
    """Check the arguments of a command whose arguments are the keys of a config.

    Args:
        command: ``fit`` or ``agent train``.
        argv: as ``expand_arguments`` returned it.

    Raises:
        UsageError: unknown keys, or values of a wrong type; the message names each with what is allowed.
        FileNotFoundError: a folder that the config names does not exist.
    """
    words = [word.partition("=")[0] for word in argv]
    if any(word in ("-h", "--help", "--print_config") or word.endswith(".help") for word in words):
        return
    files, others = split_config_files(argv)
    if not all(Path(file).is_file() for file in files):
        return
    config = merge_configs([load_config(file) for file in files])
    for name, text in _overrides(others):
        _override(config, name.split("."), text)
    training = find_class("vwm.rl.AgentTraining") if command == "agent train" else None
    _check_command(command, config, files)
    problems = [*_check_top_level(command, config, training), *_check_ranges(config)]
    if problems:
        raise UsageError("\n  ".join(["the config has errors:", *problems[:8]]) if len(problems) > 1 else problems[0])
    if command == "estimate":
        return  # the data and the tokenizer may be on another machine
    given = dict(_overrides(others))
    _check_folders(config, own_data=given.get("data.init_args.path", given.get("data.path")))


def _check_command(command: str, config: Mapping[str, Any], files: Sequence[str]) -> None:
    """Raise UsageError where the configs are of the other command."""
    other, keys = ("fit", {"model", "data"}) if command == "agent train" else ("agent train", {"algorithm"})
    if keys <= config.keys():
        raise UsageError(f"{' and '.join(files)}: a config of vwm {other}; run vwm {other} -c {' -c '.join(files)}")


def _check_ranges(value: Any, key: str = "") -> Iterator[str]:
    """Check all numbers of a config; see ``setting_ranges``."""
    if not isinstance(value, dict):
        yield from check_setting_choice(key, value)
        yield from check_setting_range(key, value)
        return
    for name, below in value.items():
        yield from _check_ranges(below, key if name == "init_args" else f"{key}.{name}".lstrip("."))


def _overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(key, text)`` of every option; one without a value is a switch."""
    rest = list(argv)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if name.startswith("--"):
            yield name.removeprefix("--"), value


def _override(config: dict[str, Any], keys: list[str], text: str) -> None:
    """Set a dotted key, where ``init_args`` may be left out."""
    node = config
    for key in keys[:-1]:
        node = _inside(node, key)
        below = node.get(key)
        node[key] = below if isinstance(below, dict) else {}
        node = node[key]
    key = keys[-1]
    node = _inside(node, key)
    value = _read_value(text, ".".join(keys))
    if isinstance(value, str) and isinstance(node.get(key), dict) and "class_path" in node[key]:
        value = {"class_path": value}
    node[key] = value


def _inside(node: dict[str, Any], key: str) -> dict[str, Any]:
    if "class_path" in node and key not in ("class_path", "init_args"):
        arguments = node.get("init_args")
        node["init_args"] = arguments if isinstance(arguments, dict) else {}
        found: dict[str, Any] = node["init_args"]
        return found
    return node


def _read_value(text: str, name: str) -> Any:
    try:
        check_yaml_size(text, name)
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check_top_level(command: str, config: Mapping[str, Any], training: ClassSignature | None) -> Iterator[str]:
    known = TOP_LEVEL[command] | set(training.parameters if training else ())
    for key, value in config.items():
        if key not in known:
            close = suggest(key, [*(name[2:] for name in SHORT_NAMES[command]), *known])
            yield f"there is no key {key}{close}; vwm {command} --help lists the keys"
        elif training is not None and key in training.parameters:
            yield from _check_value(value, training.parameters[key], training.module, key)
        elif key == "trainer" and isinstance(value, dict):
            yield from _check_arguments(find_class(TRAINER), value, key)
        elif key in CALLBACKS and isinstance(value, dict):
            yield from _check_arguments(find_class(CALLBACKS[key]), value, key)
        elif key in ("model", "data"):
            yield from _check_class(value, key)
        elif key == "threads":
            yield from _check_value(value, ast.Name("int"), None, key)


def _check_class(value: Any, key: str) -> Iterator[str]:
    """Check ``{class_path, init_args}``, or a class path alone."""
    path = value.get("class_path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        return
    found = find_class(path) if "." in path else None
    if found is None:
        package = path.rpartition(".")[0]
        if package.startswith("vwm"):
            close = suggest(path, [f"{package}.{name}" for name in public_class_names(package)])
            yield f"{key}.class_path: there is no {path}{close}"
    elif isinstance(value, dict) and isinstance(value.get("init_args"), dict):
        yield from _check_arguments(found, value["init_args"], key)


def _check_arguments(signature: ClassSignature | None, arguments: Mapping[str, Any], key: str) -> Iterator[str]:
    if signature is None:
        return
    for name, value in arguments.items():
        if name in signature.parameters:
            yield from _check_value(value, signature.parameters[name], signature.module, f"{key}.{name}")
        elif not signature.is_open:
            known = ", ".join(signature.parameters)
            yield f"{key}.{name}: {signature.name} has no {name}{suggest(name, signature.parameters)}; it has: {known}"


def _check_value(value: Any, annotation: ast.expr | None, module: SourceModule | None, key: str) -> Iterator[str]:
    """Yield the problems of a value; none where any member of a union takes it or the type is not known here."""
    if annotation is None:
        return
    members = [*_union_members(annotation, module)]
    found = [[*_check_member(value, kind, node, where, key)] for kind, node, where in members]
    if all(found):
        nested = [problems for problems in found if not problems[0].startswith(f"{key}: {value!r} must be")]
        if nested:
            yield from nested[0]
        else:
            yield f"{key}: {value!r} must be {' or '.join(dict.fromkeys(_describe(k, n) for k, n, _ in members))}"


Member = tuple[str, ast.expr, SourceModule | None]
"""The name of a type, its annotation, and the module in which it is resolved."""


def _union_members(node: ast.expr, module: SourceModule | None) -> Iterator[Member]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp):
        yield from _union_members(node.left, module)
        yield from _union_members(node.right, module)
        return
    kind = ast.unparse(node.value if isinstance(node, ast.Subscript) else node).rpartition(".")[2]
    if kind in ("Union", "Optional") and isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            yield from _union_members(part, module)
        if kind == "Optional":
            yield "None", ast.Constant(None), module
        return
    alias = resolve_alias(module, kind) if module is not None and isinstance(node, ast.Name) else None
    if alias is None:
        yield kind, node, module
    else:
        yield from _union_members(alias[1], alias[0])


def _check_member(value: Any, kind: str, node: ast.expr, module: SourceModule | None, key: str) -> Iterator[str]:
    wrong = f"{key}: {value!r} must be {_describe(kind, node)}"
    if kind == "None":
        ok = value is None
    elif kind == "Literal":
        ok = value in _choices(node)
    elif kind in ("int", "float"):
        ok = _is_number(value, {"int": int, "float": float}[kind])
    elif kind == "bool":
        ok = isinstance(value, bool)
    elif kind in ("str", "Path"):
        ok = isinstance(value, str | int | float) and value is not None
    elif kind in LISTS:
        ok = isinstance(value, list)
        if ok:
            yield from _check_elements(value, node, module, key)
    elif kind in ("dict", "Mapping", "Dict"):
        ok = isinstance(value, dict)
    else:
        yield from _check_object(value, kind, module, key)
        ok = True
    if not ok:
        yield wrong


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return False
    if kind is int:
        return isinstance(value, int)
    try:
        float(value)  # YAML reads 1e-06 as text
    except ValueError:
        return False
    return True


def _check_elements(values: list[Any], node: ast.expr, module: SourceModule | None, key: str) -> Iterator[str]:
    if not isinstance(node, ast.Subscript):
        return
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    repeated = len(parts) == 1 or (isinstance(parts[-1], ast.Constant) and parts[-1].value is ...)
    if repeated:
        parts = [parts[0]] * len(values)
    elif len(parts) != len(values):
        yield f"{key}: {values!r} must have {len(parts)} values"
        return
    for i, (value, part) in enumerate(zip(values, parts, strict=True)):
        yield from _check_value(value, part, module, f"{key}[{i}]")


def _check_object(value: Any, kind: str, module: SourceModule | None, key: str) -> Iterator[str]:
    """Check the mapping of a class or of a dataclass."""
    if isinstance(value, dict) and "class_path" in value:
        yield from _check_class(value, key)
    elif isinstance(value, dict) and module is not None and kind != "Any":
        signature = class_signature(module, kind)
        if signature is not None and signature.parameters:
            yield from _check_arguments(signature, value, key)
    elif isinstance(value, str) and value.startswith("vwm."):
        yield from _check_class(value, key)


def _choices(node: ast.expr) -> list[Any]:
    assert isinstance(node, ast.Subscript)
    values = ast.literal_eval(node.slice)
    return list(values) if isinstance(values, tuple) else [values]


def _describe(kind: str, node: ast.expr) -> str:
    if kind == "Literal":
        return f"one of {', '.join(map(str, _choices(node)))}"
    if kind in LISTS:
        return "a list, such as [a, b]"
    if kind in ("dict", "Mapping", "Dict"):
        return "a mapping, such as {key: value}"
    return WORDS.get(kind, "null" if kind == "None" else f"a {kind}")


def _check_folders(config: Mapping[str, Any], own_data: str | None) -> None:
    """Check that the data and the trained parts that a config names are there; ``own_data``: other data was given."""
    for section in ("model", "data", "algorithm"):
        arguments = _init_args(config, section)
        for name in ("tokenizer", "encoder", "pretrained", "pretrained_actions", "world", "bundle"):
            if isinstance(arguments.get(name), str):
                check_folder_or_bundle(f"{section}.{name}", arguments[name], own_data)
        for name in ("path", "data"):
            value = arguments.get(name)  # a path, or several, or several with their weights
            for path in [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ():
                check_data(str(path))
        env = _init_args(arguments, "env")  # of an agent: a world takes the place of an environment
        if isinstance(env.get("bundle"), str):
            check_folder_or_bundle(f"{section}.env.bundle", env["bundle"], own_data)


def _init_args(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    value = config.get(section)
    arguments = value.get("init_args") if isinstance(value, dict) else None
    return arguments if isinstance(arguments, dict) else {}
