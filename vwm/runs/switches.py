"""Options that are on or off, for the parsers of ``vwm fit`` and ``vwm agent train``."""

from __future__ import annotations

from jsonargparse import ActionYesNo, ArgumentParser


def add_switch(parser: ArgumentParser, name: str, default: bool, help: str) -> None:
    """Add ``--name`` and ``--no_name``; ``--name false`` and a config's ``name: false`` work, too."""
    parser.add_argument(
        f"--{name}", action=ActionYesNo(yes_prefix="", no_prefix="no_"), nargs="?", default=default, help=help
    )
