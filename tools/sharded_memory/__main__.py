"""Compare the memory that ``vwm estimate`` predicts for sharded trainings with what their processes allocate.

    python tools/sharded_memory
    python tools/sharded_memory --cases 'fsdp none' --steps 20

A variant of ``configs/dit/oasis_600m.yaml`` with 100M weights trains on 4 gloo processes of this CPU, on clips of
noise. Beside the prediction stands what the rank that needs the most had allocated at most in the steps 2 to 4, looked
up after every operation, and the growth of its resident set in the later steps (with memory that is free, and kept by
malloc for later). Both count from after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vwm.data import Episode, ShardWriter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RANKS = 4
WIDTH, DEPTH, FRAMES = 640, 14, 8
CASES: dict[str, list[str]] = {
    "fsdp none": ["--trainer.strategy", "fsdp", "--gradient_checkpointing", "none"],
    "fsdp selective": ["--trainer.strategy", "fsdp", "--gradient_checkpointing", "selective"],
    "fsdp full": ["--trainer.strategy", "fsdp", "--gradient_checkpointing", "full"],
    "hsdp-2x2 selective": ["--trainer.strategy", "hsdp-2x2", "--gradient_checkpointing", "selective"],
    "fsdp selective, tensor 2": [
        "--trainer.strategy", "fsdp", "--gradient_checkpointing", "selective", "--tensor_parallel", "2",
    ],
    "fsdp selective, context 2": [
        "--trainer.strategy", "fsdp", "--gradient_checkpointing", "selective", "--context_parallel", "2",
    ],
}  # fmt: skip
"""Names and arguments of ``vwm fit``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sharded_memory-"))
    config = write_config(folder, options.steps)
    print("| training | predicted MB | allocated MB | difference | resident MB | seconds a step |")
    print("|---|---|---|---|---|---|")
    for name in options.cases:
        predicted = predict(config, CASES[name])
        began = time.monotonic()
        ranks = train(config, folder / name.replace(" ", "-").replace(",", ""), CASES[name])
        seconds = (time.monotonic() - began) / options.steps
        peak, resident = (max(rank[key] for rank in ranks) for key in ("peak", "resident"))
        difference = predicted["total"] / peak - 1
        cells = [name, f"{predicted['total'] / 1e6:.0f}", f"{peak / 1e6:.0f}", f"{difference:+.1%}"]
        print("| " + " | ".join([*cells, f"{resident / 1e6:.0f}", f"{seconds:.1f}"]) + " |", flush=True)
        print(f"  predicted {predicted}; ranks {ranks}", file=sys.stderr, flush=True)


def write_config(folder: Path, steps: int) -> Path:
    """Write clips of noise and the config: Oasis' network, narrower and shallower, over pixels."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "data" / "shard-000000.tar") as writer:
        for episode in range(4):
            frames = rng.integers(0, 256, (FRAMES * 40, 16, 16, 3), dtype=np.uint8)
            actions = rng.uniform(-1, 1, (len(frames), 25)).astype(np.float32)
            writer.write(f"episode-{episode}", Episode(frames, actions))
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "dit" / "oasis_600m.yaml").read_text())
    module = config["model"]["init_args"]
    pixels = {"image_size": [16, 16], "patch_size": 2}
    module["tokenizer"] = {"class_path": "vwm.tokenizers.PixelTokenizer", "init_args": pixels}
    sizes = {"grid": [8, 8], "channels": 12, "width": WIDTH, "depth": DEPTH, "heads": 10, "window": FRAMES}
    module["dynamics"]["init_args"] |= sizes
    config["trainer"] |= {
        "accelerator": "cpu", "devices": RANKS, "precision": "32-true", "max_steps": steps, "log_every_n_steps": 1,
        "enable_progress_bar": False, "limit_val_batches": 0, "val_check_interval": None,
        "callbacks": [{"class_path": "allocations.MeasureSteps"}],
    }  # fmt: skip
    config |= {"checkpoint": {"every": 10**6}, "samples": {"every": 0}}
    config["data"]["init_args"] |= {
        "path": str(folder / "data"), "val_fraction": 0, "clip_length": FRAMES, "batch_size": 1, "workers": 0,
        "fields": ["frames", "actions"],
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def predict(config: Path, arguments: list[str]) -> dict[str, int]:
    """Return the bytes that ``vwm estimate`` predicts, by what they are for."""
    command = ["estimate", "-c", str(config), "--ranks", str(RANKS), "--kernels", "cpu", "--json", *arguments]
    out = subprocess.run(
        [sys.executable, "-m", "vwm.cli.main", *command],
        env=environment(), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    memory: dict[str, int] = json.loads(out)["estimates"][0]["memory"]
    return memory


def train(config: Path, run: Path, arguments: list[str]) -> list[dict[str, int]]:
    """Train on gloo processes; return what each of them measured."""
    command = [sys.executable, str(HERE / "rank.py"), "fit", "-c", str(config), "--run", str(run), *arguments]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), "GROUP_RANK": "0"}
    common |= {"LOCAL_WORLD_SIZE": str(RANKS), "TORCHELASTIC_RUN_ID": "memory"}
    run.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(RANKS):
        variables = environment() | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (run / f"rank-{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"processes ended with {codes}: see {run}/rank-*.log")
    return [json.loads((run / f"memory-{rank}.json").read_text()) for rank in range(RANKS)]


def environment() -> dict[str, str]:
    """The environment of all processes: one thread each, without an accelerator."""
    path = os.pathsep.join((str(HERE), str(ROOT)))
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


if __name__ == "__main__":
    main()
