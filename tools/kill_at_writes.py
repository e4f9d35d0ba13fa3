"""Kill commands at every write and at random moments; the same command must then end as if nothing had happened.

    python tools/kill_at_writes.py
    python tools/kill_at_writes.py --only export --moments 0

A write is an audit event of Python in the folder of the case: a file opened for writing, a rename, a removal, a new
folder. For each of them the command is started from the same state, killed with SIGKILL just before the event, and run
again to its end; then for ``--moments`` random times. Right is: what was there before is readable after the kill, the
second run gives the bytes (of a training: the weights) of an uninterrupted one, and no temporary file is left.

Processes are forked from this one, which has imported everything, so that a case takes about as long as its command.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import vwm.train.export
import vwm.train.fit  # noqa: F401 (imported before the forks)
from vwm.cli.main import main as vwm_main
from vwm.data.video_encoding import write_video
from vwm.runs.checkpoints import read_checkpoint
from vwm.worlds.bundle import load_simulator

ROOT = Path(__file__).resolve().parents[1]
WRITE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
SMALL_DIT = [
    "--data.workers", "0", "--data.clip_length", "4", "--data.batch_size", "2", "--data.val_fraction", "0",
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_steps", "4",
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--samples.every", "0",
    "--checkpoint.every", "1", "--model.dynamics.width", "16", "--model.dynamics.depth", "2",
    "--model.dynamics.heads", "2", "--model.dynamics.kv_heads", "1", "--threads", "1",
]  # fmt: skip


SMALL_DREAMER = [
    "--steps", "60", "--checkpoint_every", "20", "--log_every", "2", "--threads", "1", "--device", "cpu",
    "--evaluation.every", "40", "--evaluation.episodes", "1", "--evaluation.video", "false",
    "--algorithm.num_envs", "2", "--algorithm.prefill", "20", "--algorithm.replay_capacity", "60",
    "--algorithm.agent.world_model.deter", "16", "--algorithm.agent.world_model.hidden", "12",
    "--algorithm.agent.batch_size", "2", "--algorithm.agent.batch_length", "4",
]  # fmt: skip


class Command(NamedTuple):
    """``prepare`` makes what the command needs in a folder, ``argv`` is the command, ``result`` what it leaves."""

    prepare: Callable[[Path], None]
    argv: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    readable: Callable[[Path], None] = lambda home: None


def record_argv(home: Path) -> list[str]:
    return [
        "record", "CartPole-v1", str(home / "data"), "--frames", "90", "--frames-per-shard", "30", "--size", "64",
        "--workers", "0",
    ]  # fmt: skip


def prepare_videos(home: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        write_video(home / "videos" / f"{name}.mp4", rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), 15)


def ingest_argv(home: Path) -> list[str]:
    return ["ingest", str(home / "videos"), str(home / "data"), "--workers", "0", "--videos-per-shard", "1"]


def prepare_data(home: Path) -> None:
    vwm_main(record_argv(home))


def encode_argv(home: Path) -> list[str]:
    return [
        "encode",
        str(home / "data"),
        "--tokenizer",
        str(ROOT / "bundles" / "coinrun"),
        "-o",
        str(home / "latents"),
        "--device",
        "cpu",
    ]


def fit_argv(home: Path) -> list[str]:
    return ["fit", "-c", "dit/coinrun_pixels", "--run", str(home / "run"), "--data", str(home / "data"), *SMALL_DIT,
            "--model.dynamics.num_actions", "2"]  # fmt: skip


def prepare_run(home: Path) -> None:
    prepare_data(home)
    vwm_main(fit_argv(home))


def prepare_bundle(home: Path) -> None:
    prepare_run(home)
    vwm_main([*export_argv(home), "--title", "old"])


def export_argv(home: Path) -> list[str]:
    return ["export", str(home / "run"), "-o", str(home / "world"), "--data", "none"]


def folder_bytes(name: str) -> Callable[[Path], Any]:
    """Return a function that hashes all files of a folder, the temporary ones included."""

    def read(home: Path) -> Any:
        files = sorted(path for path in (home / name).rglob("*") if path.is_file())
        return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}

    return read


def agent_argv(home: Path) -> list[str]:
    return ["agent", "train", "-c", "agents/dreamer_v3_cartpole", "--run", str(home / "run"), *SMALL_DREAMER]


def agent_weights(home: Path) -> Any:
    policy = read_checkpoint(home / "run" / "checkpoints" / "last.ckpt")["algorithm"]["policy"]
    weights = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16] for name, value in policy.items()}
    tables = {path.name: len(path.read_text().splitlines()) for path in (home / "run" / "metrics").iterdir()}
    return {**weights, **tables, "hidden": sorted(str(path.relative_to(home)) for path in home.rglob(".*"))}


def run_weights(home: Path) -> Any:
    state = read_checkpoint(home / "run" / "checkpoints" / "last.ckpt")
    weights = {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16] for name, value in state["state_dict"].items()
    }
    hidden = sorted(str(path.relative_to(home)) for path in home.rglob(".*"))
    return {"step": state["global_step"], "hidden": hidden, **weights}


def bundle_loads(home: Path) -> None:
    load_simulator(home / "world", device="cpu")


COMMANDS = {
    "record": Command(lambda home: None, record_argv, folder_bytes("data")),
    "ingest": Command(prepare_videos, ingest_argv, folder_bytes("data")),
    "encode": Command(prepare_data, encode_argv, folder_bytes("latents")),
    "fit": Command(prepare_data, fit_argv, run_weights),
    "agent": Command(lambda home: None, agent_argv, agent_weights),
    "export": Command(prepare_bundle, export_argv, folder_bytes("world"), bundle_loads),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=COMMANDS, help="one command")
    parser.add_argument("--moments", type=int, default=20, help="random times at which each command is killed, too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failures = 0
    for name in [options.only] if options.only else COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            failures += check_command(name, options.moments, np.random.default_rng(options.seed), Path(folder))
    sys.exit(bool(failures))


def check_command(name: str, moments: int, rng: np.random.Generator, folder: Path) -> int:
    """Kill one command in all ways; print and count what did not end well."""
    command, home, template = COMMANDS[name], folder / "case", folder / "template"
    home.mkdir()
    run_apart(lambda: command.prepare(home))
    home.rename(template)
    shutil.copytree(template, home)
    began = time.monotonic()
    run_apart(lambda: vwm_main(command.argv(home)))
    duration, expected = time.monotonic() - began, command.result(home)
    kills: list[tuple[str, int | None, float | None]] = []
    failures = writes = 0
    number = 1
    while True:
        status = run_case(command, template, home, number, None)
        if status is None:
            break
        writes += 1
        failures += report(name, f"write {number}", status, command, home, expected)
        number += 1
    for delay in rng.uniform(0, duration, moments):
        status = run_case(command, template, home, None, float(delay))
        if status is not None:
            kills.append(("moment", None, delay))
            failures += report(name, f"after {delay:.2f} s", status, command, home, expected)
    print(f"{name}: killed at {writes} writes and {len(kills)} moments, {failures} did not end well", flush=True)
    return failures


def run_case(command: Command, template: Path, home: Path, write: int | None, delay: float | None) -> str | None:
    """Start from the template, kill, and run again; return what went wrong, "" for nothing, None if it ended before."""
    shutil.rmtree(home)
    shutil.copytree(template, home)
    child = start(lambda: vwm_main(command.argv(home)), home if write else None, write or 0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return None
    try:
        command.readable(home)
    except Exception as error:  # noqa: BLE001 (reported)
        return f"what was there cannot be read: {error}"
    try:
        run_apart(lambda: vwm_main(command.argv(home)))
    except RuntimeError as error:
        return str(error)
    return ""


def report(name: str, when: str, status: str, command: Command, home: Path, expected: Any) -> int:
    """Print what is wrong after a kill; return 1 for it, else 0."""
    if not status:
        found = command.result(home)
        if found == expected:
            return 0
        differing = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
        status = f"other results: {', '.join(differing[:5])}"
    print(f"{name}, {when}: {status}", flush=True)
    return 1


def run_apart(function: Callable[[], None]) -> None:
    """Run a function in a forked process. Raises RuntimeError where it fails."""
    _, status = os.waitpid(start(function, None, 0), 0)
    if status:
        raise RuntimeError(f"the command ended with status {status}")


def start(function: Callable[[], None], home: Path | None, write: int) -> int:
    """Fork a process that runs a function, and kills itself before a write into ``home`` of a given number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        if home is not None:
            sys.addaudithook(WriteCounter(home, write))
        function()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os._exit(status)


class WriteCounter:
    """An audit hook that kills the process before the write of a given number."""

    def __init__(self, home: Path, number: int) -> None:
        self.home = str(home)
        self.number = number

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event in WRITE_EVENTS or (event == "open" and _opens_for_writing(arguments))
        if is_write and str(arguments[0]).startswith(self.home):
            self.number -= 1
            if self.number == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _opens_for_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if mode is not None:
        return any(sign in str(mode) for sign in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    main()
