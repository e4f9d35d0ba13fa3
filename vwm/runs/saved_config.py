"""The config of a run folder, which may come from anybody: read as plain values, and checked before it is used."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from vwm.core.trusted_packages import find_untrusted_names, trust_package
from vwm.runs.config_files import parse_config_text, read_config_file
from vwm.runs.run_folder import RunFolder


class UntrustedConfigError(ValueError):
    """A run's config names code of a package that the user did not allow."""


def read_saved_config(run: RunFolder, allow_packages: Sequence[str] = ()) -> dict[str, Any]:
    """Read the config of a run without importing what it names.

    A relative path that is not in the current folder is looked for above the run: a run at ``project/runs/dit`` that
    was trained in ``project`` finds ``runs/tokenizer`` from everywhere.

    Args:
        run: its folder.
        allow_packages: further packages whose classes and environments it may name.

    Raises:
        FileNotFoundError: there is none.
        ConfigFileError: the file is no mapping of YAML.
        UntrustedConfigError: it names code of another package; the message names key, value and remedy.
    """
    if not run.config.is_file():
        raise FileNotFoundError(f"{run.config} does not exist: give the folder of a run")
    for package in allow_packages:
        trust_package(package)
    config = read_config_file(run.config)
    for key, text in find_untrusted_names(config):
        package = text.partition(":")[0].partition(".")[0]
        raise UntrustedConfigError(
            f"{run.config}: {key} names {text}, which is not part of vwm. A run folder from somebody else could run "
            f"any code in this way. If you trust the package: --allow-packages {package}"
        )
    found: dict[str, Any] = _find_paths(config, run.path.resolve())
    return found


def _find_paths(value: Any, run: Path) -> Any:
    """Replace relative paths that exist only above the run by absolute ones, in nested values."""
    if isinstance(value, dict):
        # The paths of a mixture are keys, and their weights the values.
        return {
            _find_paths(key, run): below if key == "run" else _find_paths(below, run) for key, below in value.items()
        }
    if isinstance(value, list):
        return [_find_paths(below, run) for below in value]
    if not isinstance(value, str) or "/" not in value or "://" in value or value.startswith("/"):
        return value
    kind, path, settings = _split_address(value)
    candidates = (folder / path for folder in run.parents)
    found = path if Path(path).exists() else next((str(place) for place in candidates if place.exists()), path)
    return f"{kind}{found}{settings}"


def _split_address(text: str) -> tuple[str, str, str]:
    """Split ``lerobot:data/aloha?size=96``, the address of data that are read in place, around its path."""
    found = re.fullmatch(r"([a-z-]+:)([^?]+)(\?.*)?", text)
    return ("", text, "") if found is None else (found[1], found[2], found[3] or "")


def check_fixed_settings(run: RunFolder, parser: ArgumentParser, now: str, is_fixed: Callable[[str], bool]) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Both configs are compared as plain values: nothing that the run's config names is imported. A setting that the run's
    config lacks, because a later version added it, may have its default.

    Args:
        run: the run to continue.
        parser: of this command's config.
        now: the settings of this command, as the text that would become the run's config.
        is_fixed: whether the setting of a dotted name must stay as it was.

    Raises:
        ValueError: a fixed setting differs.
    """
    began = flatten_config(read_config_file(run.config))
    config = parse_config_text(now, "this command")
    flat = flatten_config(config)
    differ = [name for name in {**began, **flat} if is_fixed(name) and began.get(name) != flat.get(name)]
    if differ and began.keys().isdisjoint(differ):
        added = {name for name in flat if is_fixed(name) and name not in began}
        defaults = flatten_config(_with_defaults(parser, config, added))
        differ = [name for name in differ if defaults.get(name) != flat[name]]
    for name in sorted(differ, key=lambda name: name not in began):
        raise ValueError(
            f"{run.path} was started with {name}={began.get(name)}, not {flat.get(name)}: continue it with that, "
            "or choose another folder for the new run"
        )


def _with_defaults(parser: ArgumentParser, config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return what the parser makes of a config without the settings of these dotted names; {} if one has no default."""
    parser.exit_on_error = False
    try:
        parsed = parser.parse_object(_remove_settings(config, names))
    except ArgumentError:
        return {}
    return parse_config_text(parser.dump(parsed, skip_unset=False), "this command")


def _remove_settings(config: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    left: dict[str, Any] = {}
    for key, value in config.items():
        below = _remove_settings(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) and value else value
        if f"{prefix}{key}" not in names and (below or not value):
            left[key] = below
    return left


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten_config(value, f"{name}.")
        else:
            flat[name] = value
    return flat
