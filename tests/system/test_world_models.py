"""World Models as a user trains it: V, M and C of CartPole's pictures, on a very small scale."""

import json

import pytest

from vwm.cli.main import main
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.worlds.bundle import load_simulator

SHORT = ["--trainer.accelerator", "cpu", "--threads", "1", "--samples.every", "3", "--trainer.val_check_interval", "3"]
SHORT += ["--trainer.log_every_n_steps", "1", "--data.val_fraction", "0.3", "--data.batch_size", "4"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("world_models")
    data, encoded = str(out / "data"), str(out / "encoded")
    main(["record", "CartPole-v1", data, "--frames", "300", "--size", "16", "--workers", "0"])
    v = ["-c", "configs/vae/cartpole_frame.yaml", "--data.path", data, "--run", str(out / "vae")]
    size = ["--model.tokenizer.image_size", "[16,16]", "--model.tokenizer.widths", "[4,4]"]
    main(["fit", *v, *size, *SHORT, "--trainer.max_steps", "6"])
    main(["export", str(out / "vae"), "-o", str(out / "v")])
    main(["encode", data, "--tokenizer", str(out / "v"), "--out", encoded, "--device", "cpu"])
    m = ["-c", "configs/latent_dynamics/mdn_rnn_cartpole.yaml", "--data.path", encoded, "--run", str(out / "m")]
    small = ["--model.tokenizer", str(out / "v"), "--model.dynamics.hidden_size", "16", "--data.clip_length", "4"]
    main(["fit", *m, *small, *SHORT, "--trainer.max_steps", "6"])
    main(["export", str(out / "m"), "-o", str(out / "bundle"), "--data", data, "--starts", "2"])
    return out


def test_a_run_becomes_a_bundle_that_steps(out):
    world = load_simulator(out / "bundle", "cpu")
    assert isinstance(world, MDNRNNSimulator) and world.spec.actions.size == 2 and world.spec.fps == 50
    state, _ = world.reset(world.starts)
    _, shown = world.step(state, world.starts.new_zeros(2).long())
    assert shown.frame.shape == (2, 16, 16, 3) and shown.latent.isfinite().all()
    assert list((out / "m" / "videos").glob("*.mp4"))


def test_a_controller_is_evolved_in_the_world_and_evaluated_in_the_environment(out):
    small = {"run": out / "c", "steps": 2, "evaluation.every": 2, "evaluation.episodes": 1, "device": "cpu"}
    learning = {
        "bundle": out / "bundle",
        "population": 4,
        "final_evaluation_episodes": 2,
        "device": "cpu",
        "env.init_args.size": 16,
    }
    learning |= {f"fitness.{k}": v for k, v in {"data": out / "data", "rollouts": 2, "horizon": 10}.items()}
    small |= {f"algorithm.init_args.{name}": value for name, value in learning.items()}
    options = [x for name, value in small.items() for x in (f"--{name}", str(value))]
    main(["agent", "train", "-c", "configs/agents/world_models_cartpole.yaml", *options])
    judged = json.loads((out / "c" / "evaluation.json").read_text())["results"]
    assert {name: found["episodes"] for name, found in judged.items()} == {
        "latent_and_memory": 2,
        "latent": 2,
        "random": 2,
    }
