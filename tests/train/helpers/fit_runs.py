"""``vwm fit`` in processes that share their imports, and callbacks that kill them or record their batches.

``python fit_runs.py`` imports the package once and forks for every run: a run is a process like any other (it can be
killed, and has an exit code), but starts without ten seconds of imports.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import hashlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).parent
PRELOADED = (
    *("av", "vector_quantize_pytorch", "vwm.cli.config_arguments", "vwm.cli.main", "vwm.train.fit"),
    *("vwm.models.dit.module", "vwm.models.genie.module", "vwm.models.vjepa.module", "vwm.tokenizers.module"),
    *("vwm.tokenizers.causal_vae", "vwm.tokenizers.pixel_tokenizer", "vwm.tokenizers.space_time_tokenizer"),
)
"""What the runs of the tests import."""


class RunResult(NamedTuple):
    """The exit codes of a run's processes (-9: killed by SIGKILL) and their output."""

    codes: list[int]
    output: str


class Runs:
    """The server process that forks the runs; call ``close`` at the end."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def __call__(self, argv: list[str], log: Path, ranks: int = 1, **variables: str) -> RunResult:
        """Run ``vwm`` with these arguments; if one of several ranks fails, the others are killed, as by torchrun.

        Args:
            argv: the arguments.
            log: file to print into.
            ranks: how many processes.
            variables: environment variables.
        """
        log.unlink(missing_ok=True)
        processes = [variables]
        if ranks > 1:
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
            common |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
            numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
            processes = [variables | common | number for number in numbers]
        self._server.stdin.write(json.dumps({"argv": argv, "log": str(log), "processes": processes}) + "\n")
        self._server.stdin.flush()
        return RunResult(json.loads(self._server.stdout.readline()), log.read_text())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def environment() -> dict[str, str]:
    """Environment variables of processes that import this module; without the accelerator."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[2])))  # this checkout's vwm, not the installed one
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve() -> None:
    """Fork the runs that standard input asks for, one line each; answer with their exit codes."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a garbage collection in a run would copy the memory of all imported modules
    for line in sys.stdin:
        request = json.loads(line)
        running = {}
        for number, environment in enumerate(request["processes"]):
            child = os.fork()
            if child == 0:
                run_command_and_exit(request["argv"], request["log"], environment)
            running[child] = number
        codes = [0] * len(running)
        while running:
            process_id, status = os.wait()
            codes[running.pop(process_id)] = os.waitstatus_to_exitcode(status)
            if os.waitstatus_to_exitcode(status) not in (0, 143):
                for other in running:
                    os.kill(other, signal.SIGKILL)
        print(json.dumps(codes), flush=True)


def run_command_and_exit(argv: list[str], log: str, environment: dict[str, str]) -> NoReturn:
    """Be the process of one run: print into its log, and end with the exit code of ``vwm``."""
    from vwm.cli.main import main

    os.setsid()  # a process group of its own, as under a scheduler
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    empty_input = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((empty_input, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    os.environ.update(environment)
    sys.argv = ["vwm", *argv]
    code = 0
    try:
        main(argv)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a regular exit would copy and free the memory of all imported modules, which takes seconds


if __name__ == "__main__":
    serve()
else:
    import lightning as L

    if "TORCHELASTIC_RUN_ID" in os.environ:
        faulthandler.dump_traceback_later(110, exit=True)  # a process that hangs says where, and is started again

    class KillAtStep(L.Callback):
        """After ``KILL_AT`` steps, send SIGKILL to the rank ``KILL_RANK``, or SIGTERM to its whole process group.

        The signal is sent just before the next step, when the checkpoint of that step is complete. Processes that
        torchrun restarted get no signal.
        """

        sent = False

        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            reached = os.environ.get("KILL_AT") == str(trainer.global_step)
            restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            if self.sent or not reached or restarted or trainer.global_rank != int(os.environ.get("KILL_RANK", "0")):
                return
            self.sent = True
            if os.environ.get("KILL_BY") == "TERM":
                # From another process to the whole group, as a scheduler does.
                subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], check=False)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    class KillAfterSeconds(L.Callback):
        """Send SIGKILL to the rank ``KILL_RANK``, ``KILL_AFTER`` seconds after it was made."""

        def __init__(self) -> None:
            if "KILL_AFTER" in os.environ and os.environ["KILL_RANK"] == os.environ.get("RANK", "0"):
                timer = threading.Timer(float(os.environ["KILL_AFTER"]), os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()

    class HangAtStep(L.Callback):
        """In the step after ``HANG_AT``, keep the rank ``HANG_RANK`` from computing its gradients."""

        def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
            if os.environ.get("HANG_AT") == str(trainer.global_step):
                while os.environ["HANG_RANK"] == str(trainer.global_rank):
                    signal.pause()

    class RecordBatches(L.Callback):
        """Write the hashes of the clips of every batch of this rank to ``batches-RANK.jsonl``.

        One line a batch: its step, the place of its first clip in the global batch, and the hashes.
        """

        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            clips = [hashlib.sha256(clip.cpu().numpy().tobytes()).hexdigest() for clip in batch.frames]
            division, rank = trainer.train_dataloader.division, trainer.global_rank
            part = division.clips(rank, batch_idx % division.accumulation)
            step = trainer.global_step + trainer.fit_loop._should_accumulate()
            with (Path(trainer.default_root_dir) / f"batches-{rank}.jsonl").open("a") as file:
                file.write(json.dumps([step, part.start, clips[: len(part)]]) + "\n")


def batches(run: Path, ranks: int = 1) -> dict[int, list[str]]:
    """Map each step to the hashes of its global batch; a step that was repeated must have had the same clips."""
    steps: dict[int, dict[int, str]] = {}
    for rank in range(ranks):
        for line in (run / f"batches-{rank}.jsonl").read_text().splitlines():
            step, start, clips = json.loads(line)
            for place, clip in enumerate(clips, start):
                assert steps.setdefault(step, {}).setdefault(place, clip) == clip
    return {step: [clip for _, clip in sorted(clips.items())] for step, clips in steps.items()}
