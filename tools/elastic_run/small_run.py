"""The small training that ``tools/elastic_run`` and ``tools/hosts`` disturb, and how far it may go."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from comparison import read_parts

from vwm.data import Episode, ShardWriter

HERE = Path(__file__).resolve().parent
GLOBAL_BATCH = 12
PATIENCE = 400.0
"""Seconds in which processes must make a step."""


def write_config(folder: Path, steps: int) -> Path:
    """Write random clips and the config of a small tokenizer in float64, whose loss draws no random numbers.

    Args:
        folder: to write into.
        steps: of the training.
    """
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


def set_limit(run: Path, step: int) -> None:
    """Let the workers of a run go on up to a step."""
    run.mkdir(exist_ok=True)
    (run / "limit.new").write_text(str(step))
    (run / "limit.new").replace(run / "limit")


def wait_for_step(
    run: Path, step: int, ranks: int, began: float, log: Path, meanwhile: Callable[[], None] = lambda: None
) -> list[Any]:
    """Wait until a number of ranks has made a step; return what they computed since a time.

    Args:
        run: its folder.
        step: the step.
        ranks: how many.
        began: time in seconds of the epoch.
        log: file or folder to name where nothing happens for ``PATIENCE`` seconds.
        meanwhile: called again and again.
    """
    last, patience_from = 0, time.time()
    while time.time() - patience_from < PATIENCE:
        parts = [part for part in read_parts(run) if part[6] > began and part[4] == ranks]
        if parts and parts[-1][0] >= step:
            return parts
        if len(parts) > last:
            last, patience_from = len(parts), time.time()
        meanwhile()
        time.sleep(0.1)
    sys.exit(f"no step for {PATIENCE:.0f} s: see {log}")
