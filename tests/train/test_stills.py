"""Images among videos on several processes: the same global batches, and the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from fit_runs import Runs, batches

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter

STEPS = 4


def write_config(root: Path) -> Path:
    """Write videos, images and a V-JEPA 2.1 that embeds images apart, in float64."""
    rng = np.random.default_rng(0)
    for part, lengths in (("videos", [13, 9, 17]), ("images", [1] * 6)):
        with ShardWriter(root / part / "shard-000000.tar") as writer:
            for number, length in enumerate(lengths):
                frames = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
                writer.write(f"{part}-{number}", Episode(frames))
    sizes = {"image_size": [8, 8], "frames": 4, "tubelet": 2, "patch_size": 4, "width": 12, "depth": 1, "heads": 1}
    sizes |= {"modality_embeddings": True}
    mask = {"class_path": "vwm.models.vjepa.MultiBlockMaskSampler", "init_args": {"num_blocks": 1}}
    mask["init_args"] |= {"spatial_scale": [0.3, 0.5]}
    networks: dict[str, Any] = {
        "encoder": {"class_path": "vwm.models.vjepa.VideoEncoder", "init_args": sizes},
        "predictor": {"class_path": "vwm.models.vjepa.MaskedPredictor", "init_args": {"encoder_width": 12, **sizes}},
        "mask_samplers": [mask],
        "optimizer": {"lr": 0.003, "warmup": 2},
        "monitor": None,
    }
    trainer = {"accelerator": "cpu", "precision": "64-true", "max_steps": STEPS, "enable_progress_bar": False}
    trainer |= {
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "fit_runs.RecordBatches"}],
    }
    data = {"path": {str(root / "videos"): 2, str(root / "images"): 1}, "clip_length": 4, "batch_size": 3, "workers": 0}
    config = {
        "seed_everything": 1,
        "global_batch": 6,
        "trainer": trainer,
        "ema": {"decay": 0},
        "samples": {"every": 0},
        "model": {"class_path": "vwm.models.vjepa.VJEPAModule", "init_args": networks},
        "data": {
            "class_path": "vwm.data.VideoDataModule",
            "init_args": data | {"fields": ["frames"], "stills": True, "val_fraction": 0},
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root / "config.yaml"


def test_two_processes_train_on_the_global_batches_of_one(runs: Runs, tmp_path: Path) -> None:
    config, weights = write_config(tmp_path), []
    for ranks in (1, 2):
        run = tmp_path / f"run-{ranks}"
        argv = ["fit", "-c", str(config), "--run", str(run), *(["--trainer.strategy", "ddp"] if ranks > 1 else [])]
        result = runs(argv, tmp_path / f"{ranks}.log", ranks)
        assert result.codes == [0] * ranks, result.output
        weights.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    one, two = batches(tmp_path / "run-1"), batches(tmp_path / "run-2", ranks=2)
    assert one == two and sorted(one) == list(range(1, STEPS + 1)) and {len(clips) for clips in one.values()} == {6}
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6, msg=name)
