"""Train one run on 4, 2, 3, 1 and 4 torchrun processes, killed each time, and compare it with an uninterrupted one.

    python tools/elastic_run
    python tools/elastic_run --plan 2 1 3 --seed 5 --arguments --trainer.strategy fsdp

Every process is a node of its own: a torchrun agent with one worker, on gloo. At a random step of each phase some of
the nodes are killed with SIGKILL, agent and worker, and others come; where the next phase has more nodes, a worker
alone is killed. torchrun restarts the workers at their new number, and they resume from the run's last checkpoint. The
table says where each phase began, and at the end: whether all global batches are those of the uninterrupted run, and
how far losses and weights differ from it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from comparison import compare, read_parts
from small_run import environment, set_limit, wait_for_step, write_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=int, nargs="+", default=[4, 2, 3, 1, 4], help="processes of each phase")
    parser.add_argument("--steps", type=int, default=8, help="steps of a phase")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="further arguments of vwm fit")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="elastic_run-"))
    config = write_config(folder, len(options.plan) * options.steps)
    subprocess.run(
        [sys.executable, "-m", "vwm.cli.main", "fit", "-c", str(config), "--run", str(folder / "uninterrupted")],
        env=environment(), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run = ElasticRun(folder, config, options.arguments, random.Random(options.seed))
    print("| processes | killed | at step | resumed at step | seconds until the next step |\n|---|---|---|---|---|")
    for phase, nodes in enumerate(options.plan):
        following = options.plan[phase + 1] if phase + 1 < len(options.plan) else None
        print(run.play_phase(nodes, following, phase * options.steps, options.steps), flush=True)
    print("\n" + compare(folder / "elastic", folder / "uninterrupted"))


class ElasticRun:
    """The nodes of a run that come and go.

    Args:
        folder: of the run ``elastic``, the rendezvous file and the logs.
        config: of ``vwm fit``.
        arguments: further arguments of it.
        moments: draws when and what to kill.
    """

    def __init__(self, folder: Path, config: Path, arguments: list[str], moments: random.Random) -> None:
        self.folder = folder
        self.run = folder / "elastic"
        self.config = config
        self.arguments = arguments
        self.moments = moments
        self.nodes: list[subprocess.Popen[bytes]] = []

    def play_phase(self, nodes: int, following: int | None, first: int, steps: int) -> str:
        """Train on a number of nodes up to a random step, and change to the next number; return a row of the table."""
        set_limit(self.run, first + steps if following is not None else 10**9)
        began = time.time()
        while len(self.nodes) < nodes:
            self.nodes.append(self.start_node())
        if following is None:
            self.wait_for_end()
            parts = [part for part in read_parts(self.run) if part[6] > began and part[4] == nodes]
            return f"| {nodes} | none | | {parts[0][0] - 1} | {parts[0][6] - began:.0f} |"
        at = first + self.moments.randint(2, steps)
        parts = wait_for_step(self.run, at, nodes, began, self.folder / "nodes.log")
        time.sleep(self.moments.random() * 0.2)
        lost = self.nodes[following:] if following < nodes else []
        self.nodes = self.nodes[:following]
        for node in lost:
            kill_node(node)
        what = f"{len(lost)} nodes"
        if not lost:
            rank, process = max((part[3], part[5]) for part in parts if part[4] == nodes)
            os.kill(process, signal.SIGKILL)
            what = f"the worker of rank {rank}"
        return f"| {nodes} | {what} | {at} | {parts[0][0] - 1} | {parts[0][6] - began:.0f} |"

    def start_node(self) -> subprocess.Popen[bytes]:
        """Start an agent of torchrun with one worker, in a session of its own, and the worker in its process group."""
        rendezvous = f"--rdzv_endpoint={self.folder / 'rendezvous'}"
        settings = "store_type=file,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=4"
        launch = ["--nnodes=1:8", "--nproc_per_node=1", "--max_restarts=100", "--rdzv_backend=c10d", rendezvous]
        launch += [f"--rdzv_conf={settings}", "--rdzv_id=elastic", "--monitor_interval=0.5"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "--", "vwm.cli.main", "fit"]
        command += ["-c", str(self.config), "--run", str(self.run), "--trainer.strategy", "ddp", *self.arguments]
        with (self.folder / "nodes.log").open("ab") as log:
            return subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)

    def wait_for_end(self) -> None:
        """Wait until all nodes have ended."""
        for node in self.nodes:
            if node.wait() != 0:
                sys.exit(f"a node ended with {node.returncode}: see {self.folder / 'nodes.log'}")


def kill_node(agent: subprocess.Popen[bytes]) -> None:
    """Kill an agent, its worker and all processes of theirs at once, as by a power failure."""
    processes = [agent.pid]
    for process in processes:  # grows while it is read
        processes += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    for process in processes:
        os.kill(process, signal.SIGKILL)
    agent.wait()


if __name__ == "__main__":
    main()
