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
    if len(files) == 1 and BASE_KEY not in _read(Path(files[0])):
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
    own = _read(path)
    bases = own.pop(BASE_KEY, [])
    configs = []
    for name in [bases] if isinstance(bases, str) else bases:
        base = path.parent / name
        if not base.is_file():
            raise ConfigFileError(f"{path}: {BASE_KEY} {name}: there is no such config{suggest_sibling(base)}")
        configs.append(_load(base, (*above, path.resolve())))
    return merge_configs([*configs, own])


def _read(path: Path) -> dict[str, Any]:
    import yaml
    from jsonargparse import get_loader

    try:
        config = get_loader("yaml")(path.read_text())  # unlike yaml.safe_load it reads 1e-06 as a number
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{path}: not YAML ({error})") from error
    if not isinstance(config, dict):
        raise ConfigFileError(f"{path}: a config is a mapping of keys to values, and this is {type(config).__name__}")
    return config


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path", over["class_path"]):
        merged.pop("init_args", None)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
