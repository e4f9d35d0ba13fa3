"""Finds the rank that hangs, says where it hangs, and ends the job, so that what started it starts it again."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from torch.distributed.constants import default_pg_timeout

from vwm.core.atomic_files import atomic_write_text
from vwm.runs.run_folder import RunFolder
from vwm.train.lost_ranks import LostRanks

EXIT_CODE = 75
"""What ranks end with: EX_TEMPFAIL of sysexits.h, try again."""
Progress = dict[str, Any]
"""What a rank tells of itself: training, rank, host, process, notes, step, doing, call, stack, seconds since a note."""


class Watchdog(L.Callback):
    """Ends a training of several ranks that makes no progress, and says which rank it waits for, and in which call.

    Every rank counts the hooks that it has passed, which are the same on all ranks, and writes this number to
    ``ranks/RANK.json`` in the run's folder. Where one passes no hook for ``timeout`` seconds, all ranks write the call
    in which they are, and the one with the smallest number is the one that the others wait for: in reading data, in the
    loss, or in a message that it alone did not get. A process that does not even answer is named with the last call
    that is known of it. Then all ranks end with exit code 75.

    A rank whose host failed, or was taken away, closes no connection: the others would wait for the whole timeout. They
    end after ``lost_after`` seconds without progress if a rank has not written its file for half of this time.

    Args:
        timeout: seconds without progress, among them the compilation of the first step; 0 disables the watchdog.
        lost_after: seconds without progress after which a rank that does not answer counts as lost; 0 waits for the
            timeout. A network file system may show what other hosts write a minute late.
    """

    def __init__(self, timeout: float = 1200.0, lost_after: float = 180.0) -> None:
        if not timeout >= 0:
            raise ValueError(f"watchdog.timeout={timeout} must be at least 0 seconds; 0 disables it")
        if not lost_after >= 0:
            raise ValueError(f"watchdog.lost_after={lost_after} must be at least 0 seconds; 0 waits for the timeout")
        self.timeout = timeout
        self.lost_after = min(lost_after or timeout, timeout)
        self._notes = 0
        self._doing = "starting"
        self._noted_at = 0.0
        self._step = 0
        self._training = ""
        self._end = threading.Event()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to watch, if there are other ranks."""
        if not self.timeout or trainer.world_size == 1:
            return
        self._notes = 0
        self._note(trainer, "reading a batch")
        self._end.clear()
        folder = RunFolder(trainer.default_root_dir).path / "ranks"
        main = threading.main_thread().ident or 0
        self._training = trainer.strategy.broadcast(uuid.uuid4().hex)
        self._write(folder, trainer.global_rank, main)  # at once: it may be lost before the thread does
        arguments = (folder, trainer.global_rank, trainer.world_size, main)
        threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True).start()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that a batch was read."""
        self._note(trainer, "computing the loss")

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that the loss is computed."""
        self._note(trainer, "computing gradients")

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that gradients are computed."""
        self._note(trainer, "updating weights")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that the step is done."""
        self._note(trainer, "logging, saving or reading a batch")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that a validation batch was read."""
        self._note(trainer, "validating")

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that the validation is done."""
        self._note(trainer, "sampling, saving or reading a batch")

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that a checkpoint is saved."""
        self._note(trainer, "saving a checkpoint")

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop to watch."""
        self._end.set()

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop to watch."""
        self._end.set()

    def _note(self, trainer: L.Trainer, doing: str) -> None:
        self._notes += 1
        self._step = trainer.global_step
        self._doing = doing
        self._noted_at = time.monotonic()

    def _watch(self, folder: Path, rank: int, ranks: int, main_thread: int) -> None:
        pause = min(self.timeout / 4, self.lost_after / 8, 15.0)
        others = LostRanks(folder, ranks, self.lost_after, self._training)
        slept_from = time.monotonic()
        while not self._end.wait(pause):
            now = time.monotonic()
            if now - slept_from > 2 * pause + 1:
                self._noted_at = now  # the whole process was stopped, or had no processor
            slept_from = now
            self._write(folder, rank, main_thread)
            idle = now - self._noted_at
            lost = others.find(idle)
            if idle > self.timeout or lost:
                # Those that it waits for answer meanwhile, or are known not to.
                if self._end.wait(2 * pause):
                    return
                self._write(folder, rank, main_thread)
                report_hang(folder, ranks, rank, round(idle), seen_within=3 * pause + 1)
                os._exit(EXIT_CODE)

    def _write(self, folder: Path, rank: int, main_thread: int) -> None:
        frame = sys._current_frames().get(main_thread)
        stack = [] if frame is None else traceback.format_list(traceback.extract_stack(frame))
        progress: Progress = {
            "training": self._training,
            "rank": rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "notes": self._notes,
            "step": self._step,
            "doing": self._doing,
            "stack": stack,
            "since": time.monotonic() - self._noted_at,
            "written": time.time(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / f"{rank}.json", json.dumps(progress))


def limit_messages(strategy: Any, timeout: float) -> None:
    """Let messages between ranks fail a minute after the watchdog would have ended them.

    Among them are those by which ranks find each other at the start, before the watchdog watches. torch's own limit of
    30 minutes stays where the watchdog is disabled, and a limit that a config gives its strategy stays.

    Args:
        strategy: of the trainer.
        timeout: of the watchdog, in seconds.
    """
    if timeout and getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = timedelta(seconds=timeout + 60)


def report_hang(folder: Path, ranks: int, rank: int, seconds: float, seen_within: float) -> None:
    """Print which rank all wait for; the first rank that still answers does so for all, and the others wait for it.

    Whatever started the ranks may kill them as soon as one of them ends.

    Args:
        folder: of the files of all ranks.
        ranks: how many there are.
        rank: this one.
        seconds: without progress.
        seen_within: a rank that has not written for so many seconds does not answer. The others wait as long.
    """
    fresh_after, report = time.time() - seen_within, folder / "hang.txt"
    everyone: dict[int, Progress] = {}
    for number in range(ranks):
        path = folder / f"{number}.json"
        everyone[number] = json.loads(path.read_text()) if path.is_file() else {"rank": number, "notes": -1}
    answering = [number for number, progress in everyone.items() if progress.get("written", 0) >= fresh_after]
    if rank == min(answering, default=rank):
        text = describe_hang(everyone, answering, seconds)
        print(text, file=sys.stderr, flush=True)
        atomic_write_text(report, text)
        return
    waits_until = time.monotonic() + seen_within
    while not _is_written_since(report, fresh_after) and time.monotonic() < waits_until:
        time.sleep(0.1)


def _is_written_since(path: Path, epoch: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= epoch


def describe_hang(everyone: Mapping[int, Progress], answering: Sequence[int], seconds: float) -> str:
    """Say which ranks are behind the others or do not answer, at which step and in which call they are."""
    silent = [number for number in everyone if number not in answering]
    behind = min(progress["notes"] for progress in everyone.values())
    late = silent or [n for n, progress in everyone.items() if progress["notes"] == behind]
    lines = [f"watchdog: no progress for {seconds:g} seconds"]
    if len(late) == len(everyone):
        lines.append("all ranks are equally far: the network between them, or what all of them call, hangs")
    for number in late:
        lines.append(_describe_rank(everyone[number], number in silent))
    waiting = {n: progress for n, progress in everyone.items() if n not in late}
    for number, progress in waiting.items():
        lines.append(f"rank {number} waits at step {progress['step']}, {progress['doing']}, in {_call(progress)}")
    hosts = {progress["host"] for progress in everyone.values() if "host" in progress}
    if len(hosts) > 1 and not silent:
        lines.append(f"where all these calls are messages between ranks, look at the network of the {len(hosts)} hosts")
    stacks = [f"stack of rank {n}:\n{''.join(everyone[n].get('stack', []))}" for n in late[:4]]
    return "\n".join([*lines, *stacks, f"all ranks end with exit code {EXIT_CODE}; the same command continues"])


def _describe_rank(progress: Progress, is_silent: bool) -> str:
    if "step" not in progress:
        return f"rank {progress['rank']} has never answered"
    who = f"rank {progress['rank']} (process {progress['process']} on {progress['host']})"
    where = f"at step {progress['step']}, {progress['doing']}, in {_call(progress)}"
    return f"{who} does not answer; it was last seen {where}" if is_silent else f"{who} hangs {where}"


def _call(progress: Progress) -> str:
    """Return file, line and function of the innermost call."""
    lines: list[str] = progress.get("stack", [])
    return lines[-1].strip().splitlines()[0].replace('File "', "").replace('"', "") if lines else "an unknown call"
