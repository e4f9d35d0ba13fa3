"""``vwm fit`` in processes that share their imports, and callbacks that kill them or write down what they saw.

``python fit_runs.py`` imports the package once and forks for every run: a run is a process like any other (it can be
killed, and has an exit code), but begins at once instead of after ten seconds of imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Ended(NamedTuple):
    """How the processes of a run ended: their exit codes (-9: killed), and all that they printed."""

    codes: list[int]
    output: str


class Runs:
    """The process that forks the runs; ``place`` is a folder to throw away. Close it at the end."""

    def __init__(self, place: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(place)
        )

    def __call__(self, argv: list[str], log: Path, ranks: int = 1, **more: str) -> Ended:
        """Run ``vwm`` with these arguments, on several ranks as torchrun would: when one fails the others are killed.

        Args:
            argv: the arguments.
            log: file to print into.
            ranks: how many processes.
            more: environment variables.
        """
        log.unlink(missing_ok=True)
        processes = [more]
        if ranks > 1:
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
            common |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
            numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
            processes = [more | common | number for number in numbers]
        self._server.stdin.write(json.dumps({"argv": argv, "log": str(log), "processes": processes}) + "\n")
        self._server.stdin.flush()
        return Ended(json.loads(self._server.stdout.readline()), log.read_text())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def environment(place: Path) -> dict[str, str]:
    """For processes that are to import this module; without the accelerator."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[2])))  # this checkout's vwm, not the installed one
    here = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if sys.dont_write_bytecode:  # else every process compiles every library anew
        here |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(place / "bytecode")}
    return here


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve() -> None:
    """Fork the runs that standard input asks for, one line each; answer with their exit codes."""
    import vwm.models.dit.module
    import vwm.models.genie.module
    import vwm.tokenizers.causal_vae
    import vwm.tokenizers.module
    import vwm.train.fit  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        running = {}
        for number, environment in enumerate(request["processes"]):
            child = os.fork()
            if child == 0:
                return be_a_run(request["argv"], request["log"], environment)
            running[child] = number
        codes = [0] * len(running)
        while running:
            ended, status = os.wait()
            codes[running.pop(ended)] = os.waitstatus_to_exitcode(status)
            if os.waitstatus_to_exitcode(status) not in (0, 143):
                for other in running:
                    os.kill(other, signal.SIGKILL)
        print(json.dumps(codes), flush=True)


def be_a_run(argv: list[str], log: str, environment: dict[str, str]) -> None:
    from vwm.cli.main import main

    os.setsid()  # a process group of its own, as under a scheduler
    out, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(ours, theirs)
    os.environ.update(environment)
    sys.argv = ["vwm", *argv]
    main(argv)


if __name__ == "__main__":
    serve()
else:
    import lightning as L

    class Die(L.Callback):
        """After ``DIE_AT`` steps a signal: SIGKILL to the rank ``DIE_RANK``, or SIGTERM to its whole process group.

        It comes just before the next step, so the checkpoint of that step is whole. A restart by torchrun is spared.
        """

        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            asked = os.environ.get("DIE_AT") == str(trainer.global_step)
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            if not asked or again or trainer.global_rank != int(os.environ.get("DIE_RANK", "0")):
                return
            if os.environ.get("DIE_BY") == "TERM":
                # From another process, to everyone of the group: what a scheduler does.
                subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], check=False)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    class WriteDown(L.Callback):
        """Every batch of this rank, as hashes of its clips: a line a step in the run's ``batches-RANK.jsonl``."""

        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            clips = [hashlib.sha256(clip.numpy().tobytes()).hexdigest() for clip in batch.frames.cpu()]
            with (Path(trainer.default_root_dir) / f"batches-{trainer.global_rank}.jsonl").open("a") as file:
                file.write(json.dumps([trainer.global_step, clips]) + "\n")


def batches(run: Path, ranks: int = 1) -> dict[int, list[str]]:
    """Step to the hashes of the global batch's clips. A step that was made twice was made with the same clips."""
    steps: dict[int, list[str]] = {}
    for rank in range(ranks):
        mine: dict[int, list[str]] = {}
        for line in (run / f"batches-{rank}.jsonl").read_text().splitlines():
            step, clips = json.loads(line)
            assert mine.setdefault(step, clips) == clips
        for step, clips in mine.items():
            steps[step] = steps.get(step, []) + clips
    return steps
