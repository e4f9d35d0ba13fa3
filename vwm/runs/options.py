"""Options that ``vwm fit`` and ``vwm agent train`` have in common."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser


def add_switch(parser: ArgumentParser, name: str, default: bool, help: str) -> None:
    """Add ``--name`` and ``--no_name``; ``--name false`` and a config's ``name: false`` work, too."""
    parser.add_argument(
        f"--{name}", action=ActionYesNo(yes_prefix="", no_prefix="no_"), nargs="?", default=default, help=help
    )


def add_compile_option(parser: ArgumentParser, help: str) -> None:
    """Add ``--compile``, which is also a switch; see ``vwm.core.blocks.resolve_compile``."""
    parser.add_argument("--compile", type=Literal["auto"] | bool, nargs="?", const=True, default="auto", help=help)


def add_logger_options(parser: ArgumentParser) -> None:
    """Add the options of ``make_metric_loggers``."""
    parser.add_argument("--wandb", type=str | None, default=None, help="project to log to with Weights & Biases")
    add_switch(parser, "wandb_online", False, "sync while running (needs an account)")
    add_switch(parser, "tensorboard", False, "write TensorBoard's files, too")
