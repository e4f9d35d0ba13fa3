"""Where the shipped configs are: the checkout's ``configs/``, or the copy inside an installed package."""

from __future__ import annotations

from pathlib import Path

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


def _config_folder() -> Path:
    # A wheel carries the configs inside the package. A folder next to an installed package is not ours.
    return _INSTALLED_CONFIGS if _INSTALLED_CONFIGS.is_dir() else _CHECKOUT_CONFIGS
