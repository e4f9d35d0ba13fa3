"""Which packages a file may name: a bundle or a run folder comes from anywhere, and must not decide what is imported.

A file may name the classes of this package, of packages whose families are registered
(``vwm.worlds.register_family``), and of those that the user names (``trust_package``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ENV_PREFIXES = frozenset({"procgen", "shimmy"})
"""Packages that an environment id may name, as in ``shimmy.registration:dm_control/walker-walk-v0``."""
_trusted = {"vwm"}
_ENV_ID = re.compile(r"([A-Za-z_][\w.]*):(?!//|\d+$)\S+")
"""``module:Id``; not a URL and not ``cuda:1``."""
_DATA_PATH = re.compile(r"data\.init_args\.(?:val_)?path(?:\[\d+\])?")
"""Keys of data sets. Their addresses, such as ``lerobot:data/aloha``, name a format of this package and no module."""
_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def trust_package(name: str) -> None:
    """Allow files to name the classes of a top-level package, which is then imported."""
    _trusted.add(name)


def is_trusted_package(name: str) -> bool:
    """Return whether a file may name a module or package."""
    return name.partition(".")[0] in _trusted


def find_untrusted_names(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find what a configuration would import from packages that are not trusted.

    Every text is checked, whatever its key, but for paths of data: classes and functions (``package.Class``, also
    inside a type expression), and environment ids (``module:Id``). Texts with a slash or a space before the first colon
    are paths and titles.

    Args:
        value: nested mappings, sequences and plain values.
        key: of the value.

    Yields:
        Dotted keys, and the texts there that name a package.
    """
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from find_untrusted_names(below, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, below in enumerate(value):
            yield from find_untrusted_names(below, f"{key}[{i}]")
    elif isinstance(value, str) and not (_DATA_PATH.fullmatch(key) or _is_trusted_text(value)):
        yield key, value


def _is_trusted_text(text: str) -> bool:
    env_id = _ENV_ID.fullmatch(text)
    if env_id is not None:
        module = env_id[1]
        return is_trusted_package(module) or module.partition(".")[0] in ENV_PREFIXES
    if "/" in text or " " in text:
        return True
    return all(is_trusted_package(name) or not _is_importable(name) for name in _DOTTED_NAME.findall(text))


def _is_importable(name: str) -> bool:
    """Return whether a dotted name may lead to code: its first package exists; it is not imported.

    A folder without ``__init__.py`` is a package to Python, too. Such a one counts only if it has the next name: a file
    ``data.tar`` next to a folder ``data`` is no code.
    """
    from importlib.util import find_spec

    root, below, *_ = name.split(".")
    try:
        spec = find_spec(root)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is not None:
        return spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return any(found.stem.partition(".")[0] == below for folder in folders for found in folder.glob("*"))
