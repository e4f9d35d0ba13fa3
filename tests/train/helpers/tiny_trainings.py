"""Tiny trainings of each family on tiny shards, for tests of ``vwm fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vwm.core.components import save_component
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer

EPOCH = 5
"""Steps per epoch of the data below: 21 clips of 4 frames in batches of 4."""
STEPS = 13


def write_tiny_trainings(root: Path) -> None:
    """Write ``train`` and ``val`` shards, a frozen tokenizer, and a config for each family into a folder."""
    rng = np.random.default_rng(0)
    for part, lengths in (("train", [[13, 17, 9], [22, 14], [15, 7]]), ("val", [[18, 18]])):
        for number, shard in enumerate(lengths):
            with ShardWriter(root / part / f"shard-{number:06d}.tar") as writer:
                for episode, length in enumerate(shard):
                    frames = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
                    actions = rng.integers(0, 4, length)
                    recorded = Episode(frames, actions, (actions == 1).astype(np.float32), terminated=True)
                    writer.write(f"{part}-{number}-{episode}", recorded)
    torch.manual_seed(0)
    save_component(SpaceTimeTokenizer((8, 8), 4, [3, 3], width=8, depth=1, heads=1, window=4), root / "frozen")
    models = {"tokenizer": tokenizer_model(), "genie": genie_model(root / "frozen")}
    for name, model in (models | {"vae": vae_model(), "dit": dit_model(), "vjepa": vjepa_model()}).items():
        fit_config = config(root) | {"model": model, "checkpoint": CHECKPOINT[name]}
        if name not in ("tokenizer", "genie"):
            fit_config["data"]["init_args"]["workers"] = 0
        if name == "dit":
            fit_config["data"]["init_args"] |= {
                "fields": ["frames", "actions", "rewards", "terminated"],
                "labeled_fraction": 0.5,
            }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(fit_config))


def config(root: Path) -> dict[str, Any]:
    """Enable everything that could affect training: validation, sample videos, EMA, data workers."""
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "gradient_clip_val": 1.0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "fit_runs.KillAtStep"}, {"class_path": "fit_runs.RecordBatches"}],
        },
        "ema": {"decay": 0.9},
        "samples": {"every": 4, "clips": 1},
        "data": {
            "class_path": "vwm.data.datamodule.VideoDataModule",
            "init_args": {
                "path": str(root / "train"),
                "val_path": str(root / "val"),
                "clip_length": 4,
                "batch_size": 4,
                "workers": 1,
            },
        },
    }


CHECKPOINT = {"tokenizer": {"every": 1}, "genie": {"every": EPOCH}, "vae": {"every": 3}, "dit": {"every": 3}}
CHECKPOINT["vjepa"] = {"every": 3}
SMALL = {"width": 8, "depth": 1, "heads": 1, "window": 4}


def tokenizer_model() -> dict[str, Any]:
    """With a VQ codebook, which draws random numbers and is a buffer."""
    network = {"image_size": [8, 8], "patch_size": 4, "codebook": 12, "code_width": 4, **SMALL}
    return {
        "class_path": "vwm.tokenizers.module.TokenizerModule",
        "init_args": {
            "tokenizer": {"class_path": "vwm.tokenizers.space_time_tokenizer.SpaceTimeTokenizer", "init_args": network},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
        },
    }


def genie_model(tokenizer: Path) -> dict[str, Any]:
    """With FSQ actions; the dynamics draws masks and corruption from the global generator."""
    action = {"image_size": [8, 8], "patch_size": 4, "codebook": [2, 2], **SMALL, "heads": 2}
    dynamics = {"codebook_size": 9, "tokens_per_frame": 4, "num_actions": 4, "context_corruption": 0.2}
    dynamics |= SMALL | {"heads": 2}
    return {
        "class_path": "vwm.models.genie.module.GenieModule",
        "init_args": {
            "tokenizer": str(tokenizer),
            "latent_action": {"class_path": "vwm.models.genie.latent_action.LatentActionModel", "init_args": action},
            "dynamics": {"class_path": "vwm.models.genie.dynamics.MaskGITDynamics", "init_args": dynamics},
            "optimizer": {"name": "adamw", "lr": 0.003, "warmup": 4, "schedule": "cosine"},
            "context_frames": 2,
            "sampling_steps": 2,
        },
    }


def vae_model() -> dict[str, Any]:
    """With posterior noise, and a discriminator that starts at the fourth step, between two checkpoints."""
    network = {"image_size": [8, 8], "latent_channels": 4, "time_compression": 1, "patch_size": 2}
    return {
        "class_path": "vwm.tokenizers.module.TokenizerModule",
        "init_args": {
            "tokenizer": {
                "class_path": "vwm.tokenizers.causal_vae.CausalVAE",
                "init_args": network | {"widths": [8, 8], "depths": [1, 1]},
            },
            "adversarial": {"weight": 0.1, "start_step": 4, "width": 4, "layers": 2},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
        },
    }


def dit_model() -> dict[str, Any]:
    """With everything that draws random numbers (levels, noise, dropped actions), and loss normalizers with a state."""
    dynamics = {"grid": [4, 4], "channels": 12, "num_actions": 4, "prediction": "clean", "num_step_sizes": 3}
    return {
        "class_path": "vwm.models.dit.module.DiTModule",
        "init_args": {
            "tokenizer": {
                "class_path": "vwm.tokenizers.pixel_tokenizer.PixelTokenizer",
                "init_args": {"image_size": [8, 8], "patch_size": 2},
            },
            "dynamics": {
                "class_path": "vwm.models.dit.network.DiT",
                "init_args": {**dynamics, **SMALL, "heads": 2, "depth": 2, "registers": 1},
            },
            "objective": {
                "class_path": "vwm.models.dit.objectives.ShortcutForcing",
                "init_args": {"finest": 4, "bootstrap": 0.5},
            },
            "outcomes": {"class_path": "vwm.nn.RewardTerminationHeads", "init_args": {"width": 8, "hidden": 8}},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
            "action_dropout": 0.3,
            "context_frames": 2,
            "sampling_steps": 2,
        },
    }


def vjepa_model() -> dict[str, Any]:
    """With an EMA target, a regularizer that draws directions, crops, flow, and a scheduled weight decay."""
    sizes = {"image_size": [8, 8], "frames": 4, "tubelet": 2, "patch_size": 4, "width": 12, "depth": 1, "heads": 1}
    return {
        "class_path": "vwm.models.vjepa.module.VJEPAModule",
        "init_args": {
            "encoder": {"class_path": "vwm.models.vjepa.video_encoder.VideoEncoder", "init_args": sizes},
            "predictor": {
                "class_path": "vwm.models.vjepa.masked_predictor.MaskedPredictor",
                "init_args": {"encoder_width": 12, **sizes},
            },
            "mask_samplers": [
                {
                    "class_path": "vwm.models.vjepa.masking.MultiBlockMaskSampler",
                    "init_args": {"num_blocks": 1, "spatial_scale": [0.3, 0.5]},
                }
            ],
            "momentum": {"start": 0.9, "end": 0.99},
            "regularizer": {"class_path": "vwm.models.vjepa.SIGReg", "init_args": {"num_slices": 8}},
            "motion": {
                "class_path": "vwm.models.vjepa.motion_branch.MotionBranch",
                "init_args": {"width": 12, "radius": 1},
            },
            "augmentation": {"class_path": "vwm.models.vjepa.augmentation.RandomResizedCrop"},
            "monitor": {
                "class_path": "vwm.models.vjepa.collapse_monitor.CollapseMonitor",
                "init_args": {"every_n_steps": 2, "num_clips": 2},
            },
            "optimizer": {"lr": 0.003, "warmup": 4, "schedule": "cosine", "final_weight_decay": 0.4, "stretch": 1.25},
        },
    }
