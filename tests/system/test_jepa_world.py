"""A world in representation space from the command line: record, fit, export, step, and commands that do not apply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vwm
from vwm.cli.main import main
from vwm.worlds.gymnasium_env import SimulatorEnv

CONFIG = Path(__file__).parents[2] / "configs" / "vjepa_ac" / "two_rooms_small.yaml"
SHORT = ["--threads", "1", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--samples.every", "2"]
SHORT += ["--trainer.log_every_n_steps", "1", "--data.init_args.batch_size", "2", "--data.init_args.workers", "0"]
SHORT += ["--data.init_args.val_fraction", "0.4"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """Two bundles, one with a decoder and one without."""
    out = tmp_path_factory.mktemp("rooms")
    data = str(out / "data")
    record = ["--frames", "160", "--max_episode_frames", "20", "--workers", "0", "--state"]
    main(["record", "vwm/TwoRooms-v0", data, *record])
    for name, extra in (("seen", []), ("blind", ["--model.init_args.decoder", "null"])):
        fit = ["fit", "-c", str(CONFIG), "--run", str(out / f"run_{name}"), "--data.init_args.path", data]
        main([*fit, *SHORT, *extra])
        main(["export", str(out / f"run_{name}"), "-o", str(out / name), "--starts", "3"])
    return out


@pytest.mark.parametrize("name", ["seen", "blind"])
def test_an_exported_run_has_the_recorded_actions(artifacts, name):
    world = vwm.load(artifacts / name, "cpu")
    assert world.spec.actions.kind == "continuous" and world.spec.actions.names == ("right", "down")
    assert (not world.spec.observation.is_latent) == (name == "seen") and not world.spec.stochastic
    assert {p.suffix for p in (artifacts / f"run_{name}" / "videos").iterdir()} == {".mp4", ".png"}
    state, frame = world.reset(world.starts)
    assert frame.shape == (3, 64, 64, 3)
    _, out = world.step(state, torch.zeros(3, 2))
    assert out.latent.shape == world.encode(world.starts)[:, -1].shape and out.latent.isfinite().all()
    assert (out.frame is None) == (name == "blind")


def test_unsupported_uses_of_a_latent_only_world_are_errors(artifacts, capsys):
    world = vwm.load(artifacts / "blind", "cpu")
    with pytest.raises(ValueError, match="no images to observe"):
        SimulatorEnv(world)
    assert SimulatorEnv(vwm.load(artifacts / "seen", "cpu")).reset(seed=0)[0].shape == (64, 64, 3)
    with pytest.raises(SystemExit):
        main(["play", str(artifacts / "blind"), "--port", "0"])
    assert "predicts latents without frames" in capsys.readouterr().err


@pytest.mark.parametrize("world", ["seen", "blind"])
def test_it_is_evaluated_in_its_latents_with_and_without_a_decoder(artifacts, tmp_path, capsys, world):
    data, report = artifacts / "data", tmp_path / "report"
    main(["eval", str(artifacts / world), str(data), "--out", str(report), "--clips", "4", "--horizon", "3"])
    assert "errors of latents" in capsys.readouterr().out
    errors = json.loads((report / "report.json").read_text())["compounding"]
    assert errors["observed"] == "latents" and len(errors["error"]) == len(errors["error_copy_last"]) == 3


def test_anti_collapse_losses_are_disabled_by_one_override(artifacts):
    run = artifacts / "run_blind"
    fit = ["fit", "-c", str(run / "config.yaml"), "--run", str(artifacts / "ablation"), "--trainer.max_steps", "1"]
    main([*fit, "--model.init_args.anti_collapse", "null"])
    columns = (artifacts / "ablation" / "metrics" / "train.csv").read_text().splitlines()[0].split(",")
    assert "prediction_loss" in columns and not {"variance_loss", "inverse_dynamics_loss"} & {*columns}
    assert json.loads((artifacts / "seen" / "model_index.json").read_text())["_class_name"] == "VJEPAACSimulator"
