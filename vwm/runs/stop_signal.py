"""Handle Ctrl-C, a scheduler's signals and notices of preemption: the training saves and ends at its next step."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
NOTICE_INTERVAL = 5.0
"""Seconds between two looks for a notice; clouds give 30 to 120 seconds."""


class StopRequest:
    """Whether the process was asked to stop; true from the first signal on. Use it as a context.

    A second Ctrl-C has its default effect. A scheduler's signals may come several times, SIGUSR1 before the end of the
    time limit and SIGTERM at it, and do not end the process while it saves. Outside the main thread, which alone
    receives signals, the request stays false.

    Args:
        notice: a file or an http address that is looked at every 5 seconds: the process has to stop as soon as the file
            exists or the address answers with status 200, by which clouds announce that they take a machine away.

    Attributes:
        number: number of the signal, or 0; a notice counts as SIGTERM.
        was_noticed: whether a notice requested the stop.
    """

    def __init__(self, notice: str | None = None) -> None:
        self.notice = notice
        self.number = 0
        self.was_noticed = False
        self._handlers_before: dict[int, Any] = {}
        self._ended = threading.Event()

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers_before = {number: signal.signal(number, self._request) for number in STOP_SIGNALS}
        if self.notice is not None:
            self._ended.clear()
            threading.Thread(target=self._look_for_notice, args=(self.notice,), name="notice", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def end(self, message: str) -> None:
        """If a stop was requested, print the message and exit with the signal's exit code. Raises SystemExit."""
        if self.number:
            announce_stop(message)
            raise SystemExit(128 + self.number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:
            signal.signal(number, self._handlers_before.pop(number, signal.default_int_handler))

    def _look_for_notice(self, notice: str) -> None:
        while not self._ended.wait(NOTICE_INTERVAL):
            if is_announced(notice):
                self.was_noticed = True
                self.number = self.number or signal.SIGTERM
                return


def announce_stop(message: str) -> None:
    """Print that a command stopped, what it has saved, and how it continues."""
    print(f"\nstopped: {message}; the same command continues from there", flush=True)


def is_announced(notice: str) -> bool:
    """Whether a file exists, or an http address answers with status 200; one that does not answer announces nothing."""
    if not notice.startswith(("http://", "https://")):
        return Path(notice).exists()
    try:
        with urllib.request.urlopen(notice, timeout=NOTICE_INTERVAL) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def requeue_slurm_job(number: int) -> str | None:
    """Ask SLURM to start this job again, as its users expect of a job that gets SIGUSR1 or SIGUSR2 before its limit.

    A job that is preempted gets SIGTERM, and is started again by SLURM itself.

    Args:
        number: the signal.

    Returns:
        What was done or failed, in a sentence; None where there is nothing to do.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if number not in (signal.SIGUSR1, signal.SIGUSR2) or job is None:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else job
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        return f"job {job} could not be put into SLURM's queue again ({said}): scontrol requeue {job}"
    return f"job {job} is in SLURM's queue again"
