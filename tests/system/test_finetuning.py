"""Finetuning a pretrained world to an environment's actions, rewards and terminations by `vwm fit` and `vwm export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import diffusion_world, genie

from vwm.cli.main import main
from vwm.core.spaces import ActionSpace
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.nn.lora import LoRALinear
from vwm.runs.run_folder import RunFolder
from vwm.worlds.bundle import load_simulator, save_simulator

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = ["--threads", "1", "--trainer.precision", "32-true", "--trainer.val_check_interval", "2", "--samples.every", "0"]
TINY += ["--trainer.log_every_n_steps", "1", "--data.init_args.workers", "0", "--data.init_args.batch_size", "2"]
TINY += ["--data.init_args.clip_length", "4", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]


def write_episodes(folder: Path, side: int) -> Path:
    """Write episodes of three actions, of which action 1 is rewarded; every episode terminates."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for episode in range(3):
            frames = rng.integers(0, 256, (9, side, side, 3), dtype=np.uint8)
            actions = rng.integers(0, 3, 9)
            terminated_episode = Episode(frames, actions, (actions == 1).astype(np.float32), terminated=True)
            writer.write(f"episode-{episode}", terminated_episode)
    return folder


def finetune(config: str, world: Path, width: int, steps: int, *arguments: str) -> None:
    main(
        ["fit", "-c", str(CONFIGS / config), "--run", str(world / "run"), "--trainer.max_steps", str(steps)]
        + ["--model.init_args.world", str(world / "world"), "--model.init_args.num_actions", "3"]
        + ["--model.init_args.outcomes.init_args.width", str(width), "--data.init_args.path", str(world / "data")]
        + ["--data.init_args.val_path", str(world / "data")]
        + [*TINY, *arguments]
    )


def check_bundle(folder: Path) -> None:
    """Check that a bundle is a merged world with three labeled actions, rewards and terminations."""
    world = load_simulator(folder, "cpu")
    assert (world.spec.actions.kind, world.spec.actions.size, world.spec.actions.latent) == ("discrete", 3, False)
    assert not getattr(world, "num_latent_actions", 0) and world.outcomes is not None
    assert not any(isinstance(part, LoRALinear) for part in world.dynamics.modules())
    state, _ = world.reset(world.starts[:3], seed=0)
    _, out = world.step(state, torch.arange(3))
    assert out.reward.isfinite().all() and (out.reward != 0).any()  # the heads are initialized to zero


def test_a_genie_world_with_latent_actions_is_finetuned_to_labeled_actions(tmp_path, capsys):
    save_simulator(genie(), tmp_path / "world")
    write_episodes(tmp_path / "data", 16)
    finetune("genie/coinrun_finetune.yaml", tmp_path, 16, steps=2)
    assert "action map: " in capsys.readouterr().out and RunFolder(tmp_path / "run").last_checkpoint.is_file()
    finetune("genie/coinrun_finetune.yaml", tmp_path, 16, steps=3)
    printed = capsys.readouterr().out
    # The action map is computed only at the start.
    assert "continuing from" in printed and "action map: " not in printed
    main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle"), "--sampling-steps", "2", "--context", "2"])
    check_bundle(tmp_path / "bundle")


LORA = ("--model.init_args.adapt", "lora", "--model.init_args.optimizer.name", "adamw")


@pytest.mark.parametrize("options", [(), LORA], ids=["as configured", "lora"])
def test_a_diffusion_world_without_actions_is_finetuned_to_labeled_actions(tmp_path, options):
    world = diffusion_world(num_actions=0, prediction="clean", num_step_sizes=4)
    world.spec = replace(world.spec, actions=ActionSpace("discrete", 1, ("go on",)))
    save_simulator(world, tmp_path / "world")
    write_episodes(tmp_path / "data", 8)
    finetune("dit/freeway_finetune.yaml", tmp_path, 32, 2, *options)
    main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle"), "--sampling-steps", "2", "--context", "2"])
    check_bundle(tmp_path / "bundle")
