"""The commands that make a trained part that a config names and that does not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vwm.cli.configs import config_names, config_path
from vwm.core.command_output import format_command
from vwm.runs.config_files import load_config
from vwm.runs.run_folder import RunFolder

TOKENIZER_CONFIGS = ("tokenizer", "vae")
"""Folders of the shipped configs that train tokenizers."""


def commands_that_make(part: str, key: str, data: str | None = None) -> str:
    """Return the commands that train and export a part, as a text.

    A finished run of that name next to the part's folder is exported. Otherwise the part is one of a shipped config's
    runs, if the folders are named as in that config.

    Args:
        part: the folder that does not exist, such as ``runs/coinrun_small/bundle``.
        key: the last name of the config's key: ``tokenizer``, ``pretrained``, ``pretrained_actions``,
            ``encoder``, ``world`` or ``bundle``.
        data: shards to train on, where they are not the config's.
    """
    folder = Path(part)
    finished = [run for run in _finished_runs(folder.parent) if run.name in folder.name or run.name == key]
    if finished:
        return format_command("export", finished[0], "-o", part)
    shipped = _best(folder, key, [*_shipped_trainings(folder)])
    if shipped is None:
        config = "tokenizer/coinrun_small" if key == "tokenizer" else "CONFIG"
        words = ["fit", "-c", config, *(["--data", data] if data else []), "--run", folder.parent / key]
        return f"{format_command(*words)}, then {format_command('export', folder.parent / key, '-o', part)}"
    run, name = shipped
    words = ["fit", "-c", name, *(["--data", data] if data else [])]
    return f"{format_command(*words)}, then {format_command('export', run, '-o', part)}"


def _best(part: Path, key: str, trainings: list[tuple[Path, str]]) -> tuple[Path, str] | None:
    """The (run, name of its config) whose export a folder most probably is."""

    def rank(training: tuple[Path, str]) -> tuple[bool, bool, bool]:
        run, config = training
        makes_tokenizer = config.partition("/")[0] in TOKENIZER_CONFIGS
        return run.name in part.name, run.name == key, makes_tokenizer == (key == "tokenizer")

    return max(trainings, key=rank, default=None)


def _finished_runs(folder: Path) -> Iterator[Path]:
    for run in sorted(folder.iterdir()) if folder.is_dir() else ():
        if RunFolder(run).has_checkpoint:
            yield run


def _shipped_trainings(part: Path) -> Iterator[tuple[Path, str]]:
    """Yield (run, name) of the shipped configs that write next to a part, but do not need it themselves."""
    for name in config_names():
        file = Path(config_path(f"{name}.yaml"))
        if str(part.parent) not in file.read_text():  # without parsing most of them, which takes seconds
            continue
        config = load_config(file)
        run = Path(config.get("run", ""))
        if part.parent in (run, run.parent) and not name.startswith("agents/") and str(part) not in _texts(config):
            yield run, name


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for below in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(below)
    elif isinstance(value, str):
        yield value
