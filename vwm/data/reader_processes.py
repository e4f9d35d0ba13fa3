"""The processes that read batches for a loader: their signals, their end, and their errors."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import signal
from contextlib import suppress


def worker_message(error: Exception) -> str:
    """Return the message of an error in a reader process, without the traceback that torch puts before it."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return re.split(rf"\n(?:[\w.]+\.)?{type(error).__name__}: ", text.rstrip())[-1]


def ignore_ended_workers() -> None:
    """Stop torch's handler, which raises an error wherever the program is when a reader process ends."""
    with suppress(ValueError, AttributeError):  # not the main thread, or no such signal
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def kill_workers() -> None:
    """End reader processes when this one ends: they ignore the first signal, and would be waited for without end."""
    ignore_ended_workers()
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def prepare_worker(worker: int) -> None:
    """Keep a worker running until the run is saved: schedulers and terminals send signals to every process of a job.

    A spawned worker (the only kind on macOS and Windows) ends at once, without tearing down the interpreter, which
    would abort it where the thread that sends batches still holds a tensor.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: signal.signal(signum, signal.SIG_DFL))
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # SLURM's notice before a limit
        signal.signal(number, signal.SIG_IGN)
    atexit.register(os._exit, 0)
