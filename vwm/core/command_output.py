"""What commands show: their progress with the time left, and as their last lines what came out and what comes next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60
"""Seconds between reports of progress where they are not shown in a terminal, but written into a file."""


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
) -> tqdm[Any]:
    """Show progress and the time left on standard error.

    Where that is no terminal, work of less than a minute shows nothing, and longer work reports once a minute.

    Args:
        iterable: iterate over it; without one, call ``update`` of the returned bar.
        desc: what is done.
        unit: what is counted.
        total: how many there are; by default the length of ``iterable``.
        initial: how many are done already.
        leave: let the bar stand after the end.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        leave=leave and interactive,
        smoothing=0.05,
        dynamic_ncols=interactive,
        mininterval=0.1 if interactive else LOG_SECONDS,
        maxinterval=10 if interactive else LOG_SECONDS,
        delay=0 if interactive else LOG_SECONDS,
    )


def show_detail(bar: tqdm[Any], text: str) -> None:
    """Show a text after a progress bar: at once in a terminal, elsewhere with the bar's next report."""
    bar.set_postfix_str(text, refresh=sys.stderr.isatty())


def print_output(path: Path, contents: str = "", next_command: str | None = None) -> None:
    """Print the last lines of a command: a file or folder with its size, and the command that usually comes next.

    Args:
        path: what the command wrote.
        contents: what it holds.
        next_command: for example by ``format_command``.
    """
    print(f"output: {path} ({format_size(size_on_disk(path))}){contents and ': '}{contents}")
    if next_command is not None:
        print_next_command(next_command)


def print_next_command(command: str) -> None:
    """Print the command that usually comes next: the last line, also of commands that write no file."""
    print(f"next: {command}", flush=True)


def format_training(data: object, name: str) -> str:
    """Return the command that trains the first network on new data: a tokenizer, in a run called after the data."""
    return format_command(
        "fit", "-c", "tokenizer/coinrun_small", "--data", data, "--run", Path("runs") / name / "tokenizer"
    )


def format_command(*words: object) -> str:
    """Return a command line, with its words quoted where a shell requires it; capitals like DATA are placeholders."""
    return shlex.join(["vwm", *map(str, words)])


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 shard``, ``2 shards``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def format_size(size: float) -> str:
    """Return a number of bytes as text with three digits: ``12.3 MB``."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
