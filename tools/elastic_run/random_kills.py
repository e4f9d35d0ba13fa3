"""Kill a process of a training at random moments, twenty times; the end must be that of an undisturbed training.

    python tools/elastic_run/random_kills.py
    python tools/elastic_run/random_kills.py --kills 20 --seed 5

Once with another number of processes and another strategy after each kill: the same global batches, losses and weights
to rounding. Once always with two processes that share the weights: weights equal in every bit. Moments begin when a
process starts, so that loading, saving and the writing in the background are among them. Checkpoints are folders that
all processes write. Processes are forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests" / "train" / "helpers")]

from fit_runs import Runs  # noqa: E402
from small_run import write_config  # noqa: E402

from vwm.runs import RunFolder  # noqa: E402
from vwm.train.resume_points import find_resume_point, load_resume_point  # noqa: E402

MESHES = [(1, "auto"), (2, "ddp"), (2, "fsdp"), (3, "ddp"), (3, "fsdp"), (4, "ddp")]
EQUAL_MESH = [(2, "fsdp")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="a process is killed this long after its start at most"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="random_kills-"))
    config = make_config(folder, options.steps)
    runs, moments = Runs(), random.Random(options.seed)
    train(runs, folder, config, "alone", 1, "auto")
    train(runs, folder, config, "shared", *EQUAL_MESH[0])
    for name, meshes, expected in (("moving", MESHES, "alone"), ("equal", EQUAL_MESH, "shared")):
        ranks, strategy = meshes[-1]
        kills = []
        while len(kills) < options.kills:
            ranks, strategy = moments.choice(meshes)
            seconds, rank = moments.uniform(0, options.seconds), moments.randrange(ranks)
            killed = train(runs, folder, config, name, ranks, strategy, KILL_AFTER=str(seconds), KILL_RANK=str(rank))
            if not killed:
                break  # the training was faster
            kills.append((ranks, last_step(folder / name)))
        train(runs, folder, config, name, 2, meshes[-1][1] if meshes is EQUAL_MESH else "ddp")
        print(f"{name}: killed {len(kills)} times, with (processes, last saved step) {kills}")
        print(f"{name}: {compare(folder / name, folder / expected, exact=meshes is EQUAL_MESH)}", flush=True)
    runs.close()


def make_config(folder: Path, steps: int) -> Path:
    """Write the config of ``tools/elastic_run`` with the callbacks of the forked processes."""
    path = write_config(folder, steps)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"] = [
        {"class_path": "fit_runs.KillAfterSeconds"}, {"class_path": "fit_runs.RecordBatches"},
    ]  # fmt: skip
    config["checkpoint"] = {"every": 2, "format": "folder"}
    path.write_text(yaml.safe_dump(config))
    return path


def train(runs: Runs, folder: Path, config: Path, name: str, ranks: int, strategy: str, **environment: str) -> bool:
    """Train until the end or the kill; return whether it was killed. Exits where a process failed by itself."""
    argv = ["fit", "-c", str(config), "--run", str(folder / name), "--trainer.strategy", strategy]
    result = runs(argv, folder / f"{name}.log", ranks, **environment)
    killed = result.codes[int(environment.get("KILL_RANK", "0"))] == -9
    if not killed and any(result.codes):
        sys.exit(f"{name} ended with {result.codes}:\n{result.output}")
    return killed


def last_step(run: Path) -> int:
    """Return the last saved step; 0 before the first."""
    point = find_resume_point(RunFolder(run))
    return int(point.rpartition("-")[2]) if point else 0


def compare(run: Path, expected: Path, exact: bool) -> str:
    """Compare batches and weights of two runs; exits where they differ."""
    batches, others = read_batches(run), read_batches(expected)
    if batches != others:
        sys.exit(f"{run.name}: other global batches than {expected.name}")
    state, other = (load_resume_point(str(find_resume_point(RunFolder(path)))) for path in (run, expected))
    difference = max(float((w - other["state_dict"][name]).abs().max()) for name, w in state["state_dict"].items())
    if exact and difference:
        sys.exit(f"{run.name}: weights differ by {difference:.1e}")
    if difference > 1e-9:
        sys.exit(f"{run.name}: weights differ by {difference:.1e}, more than rounding")
    return f"{len(batches)} global batches are those of {expected.name}; weights differ by {difference:.1e}"


def read_batches(run: Path) -> dict[int, list[str]]:
    """Return the clips of every step; a step that was repeated had the same."""
    from fit_runs import batches

    found: dict[int, list[str]] = batches(run, ranks=len(list(run.glob("batches-*.jsonl"))))
    return found


if __name__ == "__main__":
    main()
