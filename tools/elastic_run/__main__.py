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
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vwm.data import Episode, ShardWriter
from vwm.runs import RunFolder
from vwm.train.resume_points import find_resume_point, load_resume_point

HERE = Path(__file__).resolve().parent
GLOBAL_BATCH = 12
PATIENCE = 300.0
"""Seconds in which processes must make a step."""


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


def write_config(folder: Path, steps: int) -> Path:
    """Write random clips and the config of a small tokenizer in float64, whose loss draws no random numbers."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "data" / "shard-000000.tar") as writer:
        for episode in range(20):
            writer.write(f"episode-{episode}", Episode(rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)))
    network = {"image_size": [16, 16], "patch_size": 4, "codebook": [5, 5, 5], "width": 16, "depth": 2, "heads": 2}
    config = {
        "seed_everything": 1,
        "global_batch": GLOBAL_BATCH,
        "trainer": {
            "accelerator": "cpu", "precision": "64-true", "max_steps": steps, "log_every_n_steps": 1,
            "enable_progress_bar": False, "num_sanity_val_steps": 0, "gradient_clip_val": 1.0,
            "callbacks": [
                {"class_path": "elastic_callbacks.RecordParts"}, {"class_path": "elastic_callbacks.WaitAtLimit"},
            ],
        },
        "checkpoint": {"every": 3},
        "samples": {"every": 0},
        "model": {
            "class_path": "vwm.tokenizers.TokenizerModule",
            "init_args": {
                "tokenizer": {"class_path": "vwm.tokenizers.SpaceTimeTokenizer", "init_args": network | {"window": 4}},
                "optimizer": {"name": "adamw", "lr": 0.003, "warmup": 4, "schedule": "cosine"},
            },
        },
        "data": {
            "class_path": "vwm.data.VideoDataModule",
            "init_args": {
                "path": str(folder / "data"), "val_fraction": 0, "clip_length": 4, "batch_size": 4,
                "fields": ["frames"], "workers": 0,
            },
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment() -> dict[str, str]:
    """The environment of all processes: one thread each, restarts by torchrun with stores of their own."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return os.environ | fixed | {"PYTHONPATH": path}


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
        self.set_limit(first + steps if following is not None else 10**9)
        began = time.time()
        while len(self.nodes) < nodes:
            self.nodes.append(self.start_node())
        if following is None:
            self.wait_for_end()
            parts = [part for part in read_parts(self.run) if part[6] > began and part[4] == nodes]
            return f"| {nodes} | none | | {parts[0][0] - 1} | {parts[0][6] - began:.0f} |"
        at = first + self.moments.randint(2, steps)
        parts = self.wait_for_step(at, nodes, began)
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

    def set_limit(self, step: int) -> None:
        """Let the workers go on up to a step."""
        self.run.mkdir(exist_ok=True)
        (self.run / "limit.new").write_text(str(step))
        (self.run / "limit.new").replace(self.run / "limit")

    def wait_for_step(self, step: int, nodes: int, began: float) -> list[Any]:
        """Wait until a number of ranks has made a step; return what they computed since the phase began."""
        last, patience_from = 0, time.time()
        while time.time() - patience_from < PATIENCE:
            parts = [part for part in read_parts(self.run) if part[6] > began and part[4] == nodes]
            if parts and parts[-1][0] >= step:
                return parts
            if len(parts) > last:
                last, patience_from = len(parts), time.time()
            time.sleep(0.1)
        sys.exit(f"no step for {PATIENCE:.0f} s: see {self.folder / 'nodes.log'}")

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


def read_parts(run: Path) -> list[Any]:
    """Return the lines of all processes by time; one that is being written is left out."""
    lines = [line for file in (run / "parts").glob("*.jsonl") for line in file.read_text().split("\n")[:-1]]
    return sorted((json.loads(line) for line in lines), key=lambda part: part[6])


def read_batches(run: Path) -> dict[int, list[str]]:
    """Map each step to the hashes of its clips. Exits where a step that was repeated had other clips."""
    steps: dict[int, dict[int, str]] = {}
    for step, start, clips, *_ in read_parts(run):
        for place, clip in enumerate(clips, start):
            if steps.setdefault(step, {}).setdefault(place, clip) != clip:
                sys.exit(f"step {step}: clip {place} is another one in its repetition")
    return {step: [clip for _, clip in sorted(clips.items())] for step, clips in steps.items()}


def read_losses(run: Path) -> np.ndarray[Any, Any]:
    """Return the losses of all steps."""
    with (run / "metrics" / "train.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def compare(run: Path, expected: Path) -> str:
    """Compare batches, losses and weights of two runs; exits with what is wrong."""
    batches, others = read_batches(run), read_batches(expected)
    wrong = [step for step in others if batches.get(step) != others[step]]
    if wrong or batches.keys() != others.keys():
        sys.exit(f"other global batches at steps {wrong or sorted(batches.keys() ^ others.keys())}")
    losses, other_losses = read_losses(run), read_losses(expected)
    if len(losses) != len(other_losses):
        sys.exit(f"{len(losses)} losses were logged, not {len(other_losses)}")
    weights, other_weights = (
        load_resume_point(str(find_resume_point(RunFolder(path))))["state_dict"] for path in (run, expected)
    )
    difference = max(float((weights[name] - other_weights[name]).abs().max()) for name in weights)
    return (
        f"{len(batches)} global batches of {GLOBAL_BATCH} clips, all equal to those of the uninterrupted run; losses "
        f"differ by {np.abs(losses / other_losses - 1).max():.1e} of their value at most, weights by {difference:.1e}"
    )


if __name__ == "__main__":
    main()
