"""The small world that ``tools/hosts`` trains: a diffusion transformer on pixels, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from small_run import GLOBAL_BATCH, write_config

from vwm.data import Episode, ShardWriter


def write_world_config(folder: Path, steps: int) -> Path:
    """Write recordings with actions, and the config of ``vwm fit``; levels and noise of a clip belong to the clip.

    Args:
        folder: to write into.
        steps: of the training.
    """
    path = write_config(folder, steps)
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "recordings" / "shard-000000.tar") as writer:
        for episode in range(20):
            frames, actions = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, 40)
            writer.write(f"episode-{episode}", Episode(frames, actions))
    network = {"grid": [4, 4], "channels": 12, "num_actions": 4, "width": 16, "depth": 2, "heads": 2, "window": 4}
    tokenizer = {"image_size": [8, 8], "patch_size": 2}
    config = yaml.safe_load(path.read_text())
    config["checkpoint"] = {"every": 3, "format": "folder"}
    config["watchdog"] = {"timeout": 120, "lost_after": 60}
    config["data"]["init_args"] |= {
        "path": str(folder / "recordings"), "batch_size": GLOBAL_BATCH // 2, "fields": ["frames", "actions"],
    }  # fmt: skip
    config["model"] = {
        "class_path": "vwm.models.dit.DiTModule",
        "init_args": {
            "tokenizer": {"class_path": "vwm.tokenizers.PixelTokenizer", "init_args": tokenizer},
            "dynamics": {"class_path": "vwm.models.dit.DiT", "init_args": network},
            "objective": {"class_path": "vwm.models.dit.DiffusionForcing"},
            "optimizer": {"name": "adamw", "lr": 0.003, "warmup": 4, "schedule": "cosine"},
            "context_frames": 2,
            "sampling_steps": 2,
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path
