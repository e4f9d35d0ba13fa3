"""Run a command, keep what a kill would leave before each write and at random moments, and run it again from there."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import folder_bytes

from vwm.cli.main import main as vwm_main

WRITE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
FREE_SHARES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Parts of what a command needs that a full disk leaves it."""
MAX_RUNS = 20
"""Runs in which random moments are found; those after the end of a run are none."""


class Command(NamedTuple):
    """A command whose processes are killed.

    Attributes:
        prepare: makes what the command needs in a folder.
        argv: the command.
        result: what it leaves there, to be compared.
        check: raises an error where what lies there after a kill cannot be used.
        replaces: a folder that must at all times be the whole old or the whole new one.
    """

    prepare: Callable[[Path], None]
    argv: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]
    check: Callable[[Path], None] = lambda home: None
    replaces: str | None = None


class Case:
    """One command in a folder of its own: what was there before, and what an uninterrupted run leaves.

    Args:
        name: for messages.
        command: to be killed.
        folder: to work in.
    """

    def __init__(self, name: str, command: Command, folder: Path) -> None:
        self.name = name
        self.command = command
        self.home = folder / "case"
        self.template = folder / "template"
        self.kills = folder / "kills"
        self.errors = folder / "stderr"
        self.failures = 0
        self.home.mkdir()
        if os.waitpid(fork(lambda: command.prepare(self.home), self.errors), 0)[1]:
            raise RuntimeError(f"{name} cannot be prepared: {self.errors.read_text()[-2000:]}")
        self.home.rename(self.template)
        self.old = self._replaced_folder(self.template)
        self.restore(self.template)
        self.paused = PausedCommand(lambda: vwm_main(command.argv(self.home)), self.home, self.errors)
        if self.paused.go_on():
            raise RuntimeError(f"{name} fails without being killed: {self.errors.read_text()[-2000:]}")
        self.expected = command.result(self.home)
        self.restore(self.template)
        began = time.monotonic()
        self.paused.go_on()  # the first one was slower
        self.duration = time.monotonic() - began
        self.new = self._replaced_folder(self.home)

    def restore(self, state: Path) -> None:
        """Put the folder into a state that was kept."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(state, self.home)

    def keep_states(self, moments: int, rng: np.random.Generator) -> list[Path]:
        """Run the command, and keep the folder before each write; run it again, and keep it at random moments."""
        self.restore(self.template)
        self.paused.go_on(self.kills / "write")
        writes = len(list(self.kills.glob("*")))
        for run in range(MAX_RUNS):
            missing = writes + moments - len(list(self.kills.glob("*")))
            if missing > 0:  # those of earlier runs, which ended sooner than expected
                self.restore(self.template)
                self.paused.go_on(self.kills / f"moment {run}", sorted(rng.uniform(0, self.duration, missing)))
        return sorted(self.kills.glob("*"))

    def run_again(self, state: Path) -> None:
        """Put the folder into a state that was kept, look at it, run the command, and compare what it leaves."""
        self.restore(state)
        try:
            if self._replaced_folder(self.home) not in (self.old, self.new):
                raise ValueError(f"{self.command.replaces} is neither the old nor the new one")
            self.command.check(self.home)
        except Exception as error:  # noqa: BLE001 (reported)
            self.fail(state.name, f"what was there cannot be used: {error}")
        if status := self.paused.go_on():
            last = self.errors.read_text().strip().splitlines()[-1:] or ["nothing"]
            self.fail(state.name, f"run again, it ended with wait status {status} and said {last[0][:300]}")
            return
        found = self.command.result(self.home)
        names = {*found, *self.expected}
        differing = sorted(name for name in names if found.get(name) != self.expected.get(name))
        if differing:
            self.fail(state.name, f"{len(differing)} other results: {', '.join(differing[:5])}")

    def fill_disk(self, share: float) -> bool:
        """Leave a share of the space that the command needs, and run it again with all of it; False where it fits."""
        self.restore(self.template)
        before = _size(self.home)
        self.paused.go_on()
        needed = _size(self.home)
        self.restore(self.template)
        filler, state = self.home.parent / "filler", self.home.parent / f"{share:.0%} of the space"
        free = shutil.disk_usage(self.home).free - int(share * max(needed - before, needed / 2))
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free, 1))
        status = self.paused.go_on()
        filler.unlink()
        said = self.errors.read_text()
        if status and ("Traceback" in said or not os.WIFEXITED(status)):
            self.fail(state.name, f"no sentence: {said.strip()[-300:]}")
        if hidden := [str(path.relative_to(self.home)) for path in self.home.rglob(".*")]:
            self.fail(state.name, f"leaves {', '.join(hidden)}")
        self.home.rename(state)
        self.run_again(state)
        shutil.rmtree(state)
        return bool(status)

    def fail(self, when: str, what: str) -> None:
        """Print and count a failure."""
        self.failures += 1
        print(f"{self.name}, {when}: {what}", flush=True)

    def _replaced_folder(self, home: Path) -> dict[str, str]:
        return folder_bytes(home / self.command.replaces) if self.command.replaces else {}


class PausedCommand:
    """A process that stops before its first write to a folder, and from there goes on as often as it is asked.

    What precedes the first write, such as reading a config, takes longer than the training that follows.

    Args:
        function: the command.
        home: the folder.
        errors: file for what it prints to stderr.
    """

    def __init__(self, function: Callable[[], None], home: Path, errors: Path) -> None:
        self.home = home
        self.errors = errors
        self.states = ""
        self.writes = 0
        self.is_paused = False
        read_request, self._requests = os.pipe()
        self._replies, write_reply = os.pipe()
        self._pipes = read_request, write_reply

        def pause_and_run() -> None:
            os.close(self._requests)
            sys.addaudithook(self._on_event)
            function()

        self._process = fork(pause_and_run, errors)
        os.close(read_request)
        os.close(write_reply)

    def go_on(self, states: Path | None = None, delays: Sequence[float] = ()) -> int:
        """Run it to the end, and return its wait status.

        Args:
            states: begin of the paths of copies of the folder; None makes none.
            delays: copy it after these seconds, while the process is stopped; without any, before each write.
        """
        os.write(self._requests, f"{'' if delays or states is None else states}\n".encode())
        child, began = int(os.read(self._replies, 8) or 0), time.monotonic()
        with contextlib.suppress(ProcessLookupError):  # it has ended
            for delay in delays:
                time.sleep(max(0.0, began + delay - time.monotonic()))
                os.kill(child, signal.SIGSTOP)
                stopped = time.monotonic()
                shutil.copytree(self.home, f"{states} after {delay:.6f} s")
                os.kill(child, signal.SIGCONT)
                began += time.monotonic() - stopped
        return int(os.read(self._replies, 8) or 1)

    def end(self) -> None:
        """End the process."""
        os.close(self._requests)
        os.waitpid(self._process, 0)
        os.close(self._replies)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event in WRITE_EVENTS or (event == "open" and _opens_for_writing(arguments))
        if not is_write or not str(arguments[0]).startswith(str(self.home)):
            return
        if not self.is_paused:
            self.is_paused = True
            self._serve()
        self.writes += 1
        if self.states:
            shutil.copytree(self.home, f"{self.states} {self.writes:03d}")

    def _serve(self) -> None:
        """Fork a process for each request, which returns; end when there are no more."""
        requests, replies = self._pipes
        generator = random.getstate()
        gc.freeze()  # a collection in a fork would copy the memory of all modules
        while request := os.read(requests, 4096):
            child = os.fork()
            if not child:
                random.setstate(generator)  # Python seeds it again in each fork
                self.states = request.decode().strip()
                os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                return
            os.write(replies, b"%8d" % child)
            while os.WIFSTOPPED(status := os.waitpid(child, 0)[1]):
                pass
            os.write(replies, b"%8d" % status)
        os._exit(0)


def check_command(name: str, command: Command, moments: int, rng: np.random.Generator, folder: Path) -> int:
    """Kill one command before all writes and at random moments; print and count what did not end well."""
    case = Case(name, command, folder)
    distinct: dict[str, Path] = {}
    states = case.keep_states(moments, rng)
    for state in states:
        distinct.setdefault(_content(state), state)
    for state in distinct.values():
        case.run_again(state)
    case.paused.end()
    writes = sum(state.name.startswith("write") for state in states)
    print(f"{name}: killed at {writes} writes and {len(states) - writes} moments, in {len(distinct)} different states; "
          f"{case.failures} failures", flush=True)  # fmt: skip
    return case.failures


def check_full_disk(name: str, command: Command, folder: Path) -> int:
    """Run one command on a disk that is full sooner or later; print and count what did not end well."""
    case = Case(name, command, folder)
    refused = sum(case.fill_disk(share) for share in FREE_SHARES)
    case.paused.end()
    print(f"{name}: {refused} of {len(FREE_SHARES)} times the disk was full; {case.failures} failures", flush=True)
    return case.failures


def fork(function: Callable[[], None], errors: Path) -> int:
    """Fork a process that runs a function; what it prints is dropped, and what it prints to stderr goes to a file."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        function()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (as Python's own main does)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _content(folder: Path) -> str:
    """Return the files of a folder as a text, in which temporary names of two processes are equal."""
    found = {**dict.fromkeys(map(str, folder.rglob("*")), ""), **folder_bytes(folder)}
    return re.sub(r"\.\d+\.[0-9a-f]{8}\.(tmp|old)", r".\1", repr(sorted(found.items())).replace(str(folder), ""))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _opens_for_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if mode is not None:
        return re.search(r"[wax+]", str(mode)) is not None
    return bool(flags & (os.O_WRONLY | os.O_RDWR))
