"""Run ``vwm ingest --engine ray`` while its workers are killed, and the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL_SECONDS = 0.1
WORKER_NAMES = {"worker": "ray::Map(", "actor": "ray::MapWorker("}
"""Beginning of the names that Ray gives to busy processes."""


def run_ingest(arguments: Sequence[str], log: Path) -> float:
    """Run ``vwm ingest`` to its end; return the seconds it took.

    Raises:
        RuntimeError: it failed.
    """
    start = time.monotonic()
    process = start_ingest(arguments, log)
    if process.wait():
        raise RuntimeError(f"vwm ingest {' '.join(arguments)} failed:\n{log.read_text()}")
    return time.monotonic() - start


def start_ingest(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``vwm ingest`` in a process of its own, with its output in a file."""
    command = "from vwm.cli.main import main; main()"
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", command, "ingest", *arguments], stdout=output, stderr=subprocess.STDOUT
        )


def run_with_kills(arguments: Sequence[str], out: Path, log: Path, kills: Sequence[tuple[int, str]]) -> list[str]:
    """Run ``vwm ingest`` with kills, and again where the command itself was killed; return what was killed.

    Args:
        arguments: of the command.
        out: folder of the shards.
        log: output of the command.
        kills: see ``run_until_killed``.
    """
    killed: list[str] = []
    while True:
        killed += run_until_killed(arguments, out, log, kills[len(killed) :])
        if killed[-1:] != ["driver"]:
            return killed


def run_until_killed(
    arguments: Sequence[str], out: Path, log: Path, kills: Sequence[tuple[int, str]], cluster: int | None = None
) -> list[str]:
    """Run ``vwm ingest`` to its end, or until it is killed; return what was killed.

    Args:
        arguments: of the command.
        out: folder of the shards.
        log: output of the command.
        kills: (number of decoded shards from which on to kill, ``"worker"`` for a process that decodes, ``"actor"`` for
            one that runs models, or ``"driver"`` for the command), ascending.
        cluster: process number of the cluster whose workers are killed; by default those that the command started.
    """
    killed: list[str] = []
    process = start_ingest(arguments, log)
    while process.poll() is None:
        decoded = sum(1 for _ in (out / "clips").glob("*.json"))
        at, kind = kills[len(killed)] if len(killed) < len(kills) else (decoded + 1, "")
        target = None
        if decoded >= at:
            target = process.pid if kind == "driver" else busy_worker(cluster or process.pid, WORKER_NAMES[kind])
        if target is not None:
            os.kill(target, signal.SIGKILL)
            killed.append(kind)
            if kind == "driver":
                process.wait()
                return killed
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"vwm ingest failed:\n{log.read_text()}")
    return killed


def busy_worker(root: int, name: str) -> int | None:
    """Return the process number of a descendant of a process, by the beginning of its name; None if there is none."""
    return next((number for number, found in descendants(root).items() if found.startswith(name)), None)


def descendants(root: int) -> dict[int, str]:
    """Return the numbers and names of the processes that a process started, and those that these started."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
            except (OSError, ValueError, IndexError):
                continue  # it has just ended

    def is_below(number: int) -> bool:
        while number in parents:
            number = parents[number]
            if number == root:
                return True
        return False

    return {number: name for number, name in sorted(names.items()) if is_below(number)}
