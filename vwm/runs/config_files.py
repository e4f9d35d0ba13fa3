"""Configs that build on others: a file may name its base, and several files merge, later ones over earlier ones.

    base: coinrun_small.yaml   # or a list; relative to this file
    model:
      init_args:
        dynamics:
          init_args: {width: 384, depth: 12}

Mappings merge key by key; every other value, a list included, replaces that of the base. Where a later file names
another ``class_path``, the ``init_args`` of the earlier class do not apply to it and are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vwm.core.suggestions import suggest_sibling

BASE_KEY = "base"
MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_NODES = 100_000
"""Limit of the values of a config with its aliases written out: a file of a few lines can stand for billions."""
MAX_CONFIG_DEPTH = 50


class ConfigFileError(ValueError):
    """A config that cannot be read or merged; the message names the file and key."""


def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config and merge it over its bases, so that the result needs no other file.

    Raises:
        ConfigFileError: a base does not exist or names itself, or a file is not a mapping of YAML.
    """
    return _load(Path(path), ())


def merge_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge configs, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged = _merge(merged, config)
    return merged


def compose_config_arguments(argv: Sequence[str]) -> list[str]:
    """Replace all ``-c FILE`` of a command line by one with the merged config as text, which jsonargparse takes.

    One file without a base stays as it is, so that errors name it.
    """
    files, others = split_config_files(argv)
    if not files or not all(Path(file).is_file() for file in files):
        return list(argv)  # jsonargparse says what is missing
    if len(files) == 1 and BASE_KEY not in read_config_file(Path(files[0])):
        return ["-c", files[0], *others]
    import yaml

    return ["-c", yaml.safe_dump(merge_configs([load_config(file) for file in files]), sort_keys=False), *others]


def split_config_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of ``-c`` and ``--config`` from the other arguments of a command line."""
    files: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            files.append(value if equals else next(words, ""))
        else:
            others.append(word)
    return files, others


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        chain = " > ".join(other.name for other in (*above, path))
        raise ConfigFileError(f"{path}: {BASE_KEY} leads back to this file ({chain})")
    own = read_config_file(path)
    bases = own.pop(BASE_KEY, [])
    configs = []
    for name in [bases] if isinstance(bases, str) else bases:
        base = path.parent / name
        if not base.is_file():
            raise ConfigFileError(f"{path}: {BASE_KEY} {name}: there is no such config{suggest_sibling(base)}")
        configs.append(_load(base, (*above, path.resolve())))
    return merge_configs([*configs, own])


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one file as plain values, without its bases; nothing that it names is imported.

    Raises:
        ConfigFileError: see ``parse_config_text``, or the file is too large.
    """
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ConfigFileError(f"{path}: {size} bytes are too large for a config, at most {MAX_CONFIG_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"{path}: not a text in UTF-8 ({error})") from error
    return parse_config_text(text, str(path))


def parse_config_text(text: str, source: str) -> dict[str, Any]:
    """Parse a config as plain values.

    Args:
        text: YAML.
        source: its file, for error messages.

    Raises:
        ConfigFileError: it is not a mapping of YAML, or too large; see ``check_yaml_size``.
    """
    import yaml
    from jsonargparse import get_loader

    try:
        check_yaml_size(text, source)
        config = get_loader("yaml")(text)  # unlike yaml.safe_load it reads 1e-06 as a number
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{source}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ConfigFileError(f"{source}: a config is a mapping of keys to values, and this is {type(config).__name__}")
    return config


def check_yaml_size(text: str, source: str) -> None:
    """Look at YAML before its values are made.

    Args:
        text: YAML.
        source: its file or key, for error messages.

    Raises:
        ConfigFileError: it is nested too deep, or its aliases stand for too many values.
        yaml.YAMLError: it is not YAML.
    """
    import yaml

    try:
        nodes = _count_nodes(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except RecursionError:
        raise ConfigFileError(f"{source}: nested deeper than {MAX_CONFIG_DEPTH} levels") from None
    if nodes > MAX_CONFIG_NODES:
        raise ConfigFileError(
            f"{source}: its aliases stand for {nodes:.2g} values, and a config may have {MAX_CONFIG_NODES}"
        )


def _count_nodes(node: Any, counts: dict[int, int], depth: int = 0) -> int:
    """Count the values below a YAML node; a node that aliases repeat counts each time, and is visited once."""
    if depth > MAX_CONFIG_DEPTH:
        raise RecursionError
    if node is None:
        return 0
    if id(node) not in counts:
        counts[id(node)] = 1  # an alias may lead back to the node
        below = node.value if isinstance(node.value, list) else []
        children = [child for item in below for child in (item if isinstance(item, tuple) else (item,))]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts, depth + 1) for child in children)
    return counts[id(node)]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path", over["class_path"]):
        merged.pop("init_args", None)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
