"""Submit ``tools/slurm/fit.sbatch`` to a SLURM cluster that takes its nodes and time away, and compare the run.

    apt-get install slurm-wlm
    python tools/slurm_cluster                   # as root

The cluster is real (controller, three nodes, munge) and runs on this machine, as daemons with files of their own in a
temporary folder; all are killed at the end. One job trains a small diffusion world and meets, one after the other: its
time limit, a job of higher priority that takes all nodes, a node that fails, and the loss of the node of its batch
script. A second job does without torchrun: ``srun`` starts one process of ``vwm fit`` on each node.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "elastic_run"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "hosts"))

from cluster import Cluster, check_rights
from comparison import compare, read_parts
from small_run import PATIENCE, environment, set_limit, wait_for_step
from small_world import write_world_config

SCRIPT = Path(__file__).resolve().parents[1] / "slurm" / "fit.sbatch"
STEPS = 150
"""Of the training."""
PAUSE = 2.5
"""Seconds between its steps until all faults are over."""
ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps before each fault")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    check_rights()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.mkdir(parents=True, exist_ok=True)
    config = write_world_config(folder, STEPS)
    fit = [sys.executable, "-m", "vwm.cli.main", "fit", "-c", str(config), "--run", str(folder / "uninterrupted")]
    subprocess.run(fit, env=environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cluster = Cluster(folder / "cluster", 3)
    cluster.environment |= environment() | {"PATH": f"{Path(sys.executable).parent}:{environment()['PATH']}"}
    try:
        cluster.start()
        for name in options.jobs:
            job = JOBS[name](cluster, folder / name, config)
            print(
                f"\n{job.title}\n\n| what happens | at step | state of the job | goes on after | processes | seconds |"
            )
            print("|---|---|---|---|---|---|")
            job.play(options.steps)
            print("\n" + compare(job.run, folder / "uninterrupted"), flush=True)
    finally:
        cluster.stop()


class Job:
    """A job of SLURM that trains, and what happens to it.

    Args:
        cluster: where.
        run: folder of the run.
        config: of ``vwm fit``.
    """

    title = ""

    def __init__(self, cluster: Cluster, run: Path, config: Path) -> None:
        self.cluster = cluster
        self.run = run
        self.config = config
        self.log = run.with_suffix(".log")
        self.number = ""
        self.raised_at = 0.0

    def submit(self, *arguments: str) -> None:
        """Submit the job."""
        common = ("--parsable", f"--output={self.log}", "--time=60", "--partition=low")
        self.number = self.cluster.run("sbatch", *common, *arguments)

    def disturb(self, what: str, fault: Callable[[], object], ranks: int, steps: int) -> None:
        """Let the run make some steps, do something to it, wait until a number of ranks goes on, and print a row."""
        if self.run.exists():
            wait_for_step(self.run, self.last_step() + steps, self.ranks(), 0, self.log, self.tend)
        before, began = self.last_step(), time.time()
        fault()
        parts = wait_for_step(self.run, 1, ranks, time.time(), self.log, self.tend)
        restarts = self.field("Restarts")
        state = f"{self.field('JobState').lower()}, {restarts} restarts, {self.field('NodeList')}"
        print(f"| {what} | {before} | {state} | {parts[0][0] - 1} | {ranks} | {parts[0][6] - began:.0f} |", flush=True)

    def field(self, name: str) -> str:
        """Return a field of what SLURM knows of the job."""
        shown = self.cluster.run("scontrol", "show", "job", self.number)
        return next(part.partition("=")[2] for part in shown.split() if part.startswith(f"{name}="))

    def last_step(self) -> int:
        """Return the last step that was computed; 0 before the first."""
        return max((part[0] for part in read_parts(self.run)), default=0)

    def tend(self) -> None:
        """Let the run make its next step, if its last one is long enough ago. Exits where the job has ended."""
        if time.time() - self.raised_at > PAUSE:
            self.raised_at = time.time()
            if self.number and self.field("JobState") in ENDS:
                sys.exit(f"job {self.number} ended as {self.field('JobState')}: see {self.log}")
            set_limit(self.run, self.last_step() + 1)

    def ranks(self) -> int:
        """Return how many processes computed it."""
        return int(read_parts(self.run)[-1][4])

    def reach_time_limit(self) -> None:
        """Let the time of the job end in half a minute to one and a half, and give it more once it waits again."""
        restarts = self.field("Restarts")
        minutes = sum(int(part) * unit for part, unit in zip(self.field("RunTime").split(":"), (60, 1, 0), strict=True))
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes + 2}")
        self.wait_until(lambda: self.field("Restarts") != restarts)
        self.cluster.run("scontrol", "update", f"JobId={self.number}", "TimeLimit=60")

    def lose_to_higher_priority(self) -> None:
        """Submit a job of higher priority that takes all nodes for some seconds."""
        nodes = f"--nodes={len(self.cluster.names)}"
        self.cluster.run(
            "sbatch", "--partition=high", nodes, "--cpus-per-task=96", "--output=/dev/null", "--wrap=sleep 5"
        )
        restarts = self.field("Restarts")
        self.wait_until(lambda: self.field("Restarts") != restarts)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a state of the job."""
        deadline = time.time() + PATIENCE
        while not condition():
            if time.time() > deadline:
                sys.exit(f"job {self.number} is as it was after {PATIENCE:.0f} s: see {self.log}")
            self.tend()
            time.sleep(0.5)

    def finish(self) -> None:
        """Wait for the end of the training and of the job."""
        deadline = time.time() + PATIENCE
        set_limit(self.run, STEPS)
        while self.field("JobState") not in ENDS and time.time() < deadline:
            time.sleep(0.5)
        if self.field("JobState") != "COMPLETED":
            sys.exit(f"job {self.number} ended as {self.field('JobState')}: see {self.log}")


class TorchrunJob(Job):
    """``fit.sbatch``: one torchrun agent on each node."""

    title = "fit.sbatch, torchrun"

    def play(self, steps: int) -> None:
        """Train, with one fault after the other."""
        names = self.cluster.names
        self.disturb("start on three nodes", self.start, 3, steps)
        self.disturb(f"{names[2]} fails", lambda: self.cluster.fail(names[2]), 2, steps)
        self.cluster.boot(names[2])
        self.disturb(f"{names[0]}, with the batch script, fails", lambda: self.cluster.fail(names[0]), 2, steps)
        self.cluster.boot(names[0])
        self.disturb("its time limit", self.reach_time_limit, 3, steps)
        self.disturb("a job of higher priority", self.lose_to_higher_priority, 3, steps)
        self.finish()

    def start(self) -> None:
        """Submit the script as it is."""
        self.cluster.environment |= {"RUN": str(self.run), "GPUS": "1"}
        arguments = ("-c", str(self.config), "--trainer.strategy", "ddp")
        self.submit("--nodes=2-3", "--signal=B:USR1@30", str(SCRIPT), *arguments)


class SrunJob(Job):
    """One process of ``vwm fit`` on each node, started by ``srun``."""

    title = "srun, without torchrun"

    def play(self, steps: int) -> None:
        """Train, with one fault after the other."""
        self.disturb("start on three nodes", self.start, 3, steps)
        self.disturb("its time limit", self.reach_time_limit, 3, steps)
        self.finish()

    def start(self) -> None:
        """Submit one task a node."""
        self.cluster.environment["MASTER_ADDR"] = "127.0.0.1"  # the nodes' names are no hosts' names
        for name in self.cluster.names:
            if self.cluster.run("sinfo", "--noheader", "--Node", "--format=%T", f"--nodes={name}").split()[0] != "idle":
                self.cluster.boot(name)
        fit = f"srun vwm fit -c {self.config} --run {self.run} --trainer.num_nodes 3 --trainer.strategy ddp"
        options = ("--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=8", "--signal=USR1@30", "--open-mode=append")
        self.submit(*options, "--requeue", f"--wrap={fit}")


JOBS: dict[str, type[TorchrunJob | SrunJob]] = {"torchrun": TorchrunJob, "srun": SrunJob}


if __name__ == "__main__":
    main()
