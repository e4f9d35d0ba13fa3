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
        kills: (number of decoded shards from which on to kill, ``"worker"`` or ``"driver"``), ascending.
    """
    killed: list[str] = []
    process = start_ingest(arguments, log)
    waiting = list(kills)
    while True:
        ended = process.poll() is not None
        decoded = sum(1 for _ in (out / "clips").glob("*.json"))
        if ended and not (waiting and waiting[0][1] == "driver" and killed[-1:] == ["driver"]):
            if process.returncode:
                raise RuntimeError(f"vwm ingest failed:\n{log.read_text()}")
            return killed
        if waiting and decoded >= waiting[0][0]:
            target = process.pid if waiting[0][1] == "driver" else busy_worker(process.pid)
            if target is not None:
                os.kill(target, signal.SIGKILL)
                killed.append(waiting.pop(0)[1])
                if killed[-1] == "driver":
                    process.wait()
                    process = start_ingest(arguments, log)
        time.sleep(POLL_SECONDS)


def busy_worker(driver: int) -> int | None:
    """Return the process number of a worker of a driver's Ray that runs a job now; None if there is none."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
            except (OSError, ValueError, IndexError):
                continue  # it has just ended

    def belongs_to_driver(number: int) -> bool:
        while number in parents:
            if number == driver:
                return True
            number = parents[number]
        return False

    busy = (n for n, name in names.items() if name.startswith("ray::") and "map" in name.lower())
    return next((n for n in sorted(busy) if belongs_to_driver(n)), None)
