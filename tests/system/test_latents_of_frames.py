"""A world of latents of four frames with actions: record, fit, encode, export, load, step, evaluate, bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.cli.main import main

REPOSITORY = Path(__file__).parents[2]
TINY = ["--threads", "1", "--trainer.precision", "32-true", "--trainer.val_check_interval", "2", "--ema.decay", "0.9"]
TINY += ["--trainer.log_every_n_steps", "1", "--trainer.max_steps", "4", "--samples.every", "4"]
TINY += ["--data.init_args.workers", "0", "--data.init_args.batch_size", "2", "--data.init_args.val_fraction", "0.2"]
K = 4


def arguments(prefix: str, **settings: object) -> list[str]:
    return [part for name, value in settings.items() for part in (f"{prefix}.{name}", str(value))]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    out = tmp_path_factory.mktemp("driven")
    data, latents = str(out / "data"), str(out / "latents")
    record = ["--policy", "road", "--frame_skip", "4", "--skip_first_frames", "13", "--max_episode_frames", "30"]
    main(["record", "CarRacing-v3", data, "--frames", "180", "--workers", "0", "--size", "32", *record])
    vae, dit = (str(REPOSITORY / f"configs/{kind}/carracing_k4.yaml") for kind in ("vae", "dit"))
    network = "--model.init_args.tokenizer.init_args"
    sizes = arguments(network, image_size="[32,32]", latent_channels=4, widths="[8,8]", depths="[1,1]")
    main(["fit", "-c", vae, "--run", str(out / "vae"), *sizes, "--data.init_args.path", data, *TINY])
    main(["export", str(out / "vae"), "-o", str(out / "vae_bundle")])
    main(["encode", data, "--tokenizer", str(out / "vae_bundle"), "--out", latents, "--no-keep-video"])
    heads = {"class_path": "vwm.nn.RewardTerminationHeads", "init_args": {"width": 24, "hidden": 16}}
    sizes = arguments(
        "--model.init_args.dynamics.init_args",
        grid="[4,4]",
        channels=4,
        width=24,
        depth=2,
        heads=2,
        kv_heads=1,
        window=4,
    )
    main(
        ["fit", "-c", dit, "--run", str(out / "dit"), "--model.init_args.tokenizer", str(out / "vae_bundle"), *sizes]
        + ["--model.init_args.outcomes", json.dumps(heads), "--data.init_args.clip_length", "13"]
        + ["--data.init_args.fields", "[latents,actions,rewards,terminated]", "--data.init_args.path", latents, *TINY]
    )
    main(["export", str(out / "dit"), "-o", str(out / "bundle"), "--data", data, "--sampling-steps", "2"])
    return out


def test_the_exported_world_shows_four_frames_per_step(world):
    import vwm

    assert len(list((world / "dit" / "videos").glob("*.mp4"))) > 0
    simulator = vwm.load(world / "bundle", device="cpu")
    spec = simulator.spec
    assert (spec.frames_per_step, spec.context_frames, spec.fps) == (K, 5, 12.5)
    assert simulator.starts.shape[1:] == (5, 32, 32, 3)
    state, first = simulator.reset(simulator.starts[:2], seed=0)
    each = torch.rand(2, K, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state, out = simulator.step(state, each)
    assert first.shape == (2, 32, 32, 3) and out.frame.shape == (2, K, 32, 32, 3) and out.reward.shape == (2,)
    _, out = simulator.step(state, each[:, 0])  # held
    assert out.frame.dtype == torch.uint8 and out.last_frame.shape == (2, 32, 32, 3)


def test_it_is_evaluated_by_frames_and_seconds(world, capsys):
    main(
        ["eval", str(world / "bundle"), str(world / "data"), "--out", str(world / "report")]
        + ["--clips", "4", "--horizon", "6", "--batch_size", "4", "--videos", "1", "--drift-seconds", "1"]
    )
    report = json.loads((world / "report" / "report.json").read_text())
    rollout, play = report["rollout"], report["play"]
    assert len(rollout["psnr"]) == len(rollout["psnr_copy_last"]) == 8  # two whole steps
    assert np.allclose(rollout["horizon_seconds"], np.arange(1, 9) / 12.5)
    assert len(report["control"]["delta_psnr_by_horizon"]) == 8 and report["control"]["shuffle_ratio"] > 0
    assert play["frames_per_step"] == K and play["frame_ms"] == pytest.approx(play["step_ms"]["p50"] / K)
    main(["bench", "play", str(world / "bundle"), "--steps", "2", "--repeats", "1", "--device", "cpu"])
    assert "a step / 4 frames" in capsys.readouterr().out


def test_it_is_an_environment_whose_step_is_four_frames(world):
    import gymnasium

    env = gymnasium.make("vwm.worlds.gymnasium_env:vwm/World-v0", bundle=str(world / "bundle"), max_episode_steps=2)
    env.reset(seed=0)
    for number in (1, 2):
        observation, reward, _, truncated, _ = env.step(np.array([0.1, 0.5, -1], np.float32))
        assert observation.shape == (32, 32, 3) and np.isfinite(reward) and truncated == (number == 2)
