"""Where the shipped configs are: the checkout's ``configs/``, or the copy inside an installed package."""

from __future__ import annotations

import re
import textwrap
from itertools import takewhile
from pathlib import Path

SUMMARY_WIDTH = 88
"""Largest number of characters of a config's summary."""
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_CONFIGS = _PACKAGE / "configs"
_CHECKOUT_CONFIGS = _PACKAGE.parent / "configs"


def config_path(name: str) -> str:
    """The path of a shipped config.

    Args:
        name: family and file, such as ``tokenizer/coinrun_small.yaml``.

    Raises:
        FileNotFoundError: there is no such config; the message lists the existing ones.
    """
    folder = _config_folder()
    path = folder / name
    if not path.is_file():
        there = ", ".join(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.yaml")))
        raise FileNotFoundError(f"there is no config {name} in {folder}; there are: {there or 'none'}")
    return str(path)


def config_names() -> list[str]:
    """Names of the shipped configs without their suffix, such as ``tokenizer/coinrun_small``."""
    folder = _config_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def config_summary(name: str) -> str:
    """What a shipped config is for: the beginning of the comment that it starts with, without references."""
    lines = Path(config_path(f"{name}.yaml")).read_text().splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    sentence = re.split(r"[.:;](?: |$)", re.sub(r" \([^)]*(arXiv|configs/)[^)]*\)", "", comment))[0]
    return textwrap.shorten(sentence, SUMMARY_WIDTH, placeholder=" ...")


def _config_folder() -> Path:
    # A wheel carries the configs inside the package. A folder next to an installed package is not ours.
    return _INSTALLED_CONFIGS if _INSTALLED_CONFIGS.is_dir() else _CHECKOUT_CONFIGS
