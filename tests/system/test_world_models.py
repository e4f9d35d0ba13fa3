"""World Models from the command line: V, M and C on images of CartPole, with tiny networks."""

import json

import pytest

from vwm.cli.main import main
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.worlds.bundle import load_simulator

SHORT = ["--trainer.accelerator", "cpu", "--threads", "1", "--samples.every", "3", "--trainer.val_check_interval", "3"]
SHORT += ["--trainer.log_every_n_steps", "1", "--data.val_fraction", "0.3", "--data.batch_size", "4"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    artifacts = tmp_path_factory.mktemp("world_models")
    data, encoded = str(artifacts / "data"), str(artifacts / "encoded")
    main(["record", "CartPole-v1", data, "--frames", "300", "--size", "16", "--workers", "0"])
    v = ["-c", "configs/vae/cartpole_frame.yaml", "--data.path", data, "--run", str(artifacts / "vae")]
    size = ["--model.tokenizer.image_size", "[16,16]", "--model.tokenizer.widths", "[4,4]"]
    main(["fit", *v, *size, *SHORT, "--trainer.max_steps", "6"])
    main(["export", str(artifacts / "vae"), "-o", str(artifacts / "v")])
    main(["encode", data, "--tokenizer", str(artifacts / "v"), "--out", encoded, "--device", "cpu"])
    m = ["-c", "configs/latent_dynamics/mdn_rnn_cartpole.yaml", "--data.path", encoded, "--run", str(artifacts / "m")]
    small = ["--model.tokenizer", str(artifacts / "v"), "--model.dynamics.hidden_size", "16", "--data.clip_length", "4"]
    main(["fit", *m, *small, *SHORT, "--trainer.max_steps", "6"])
    main(["export", str(artifacts / "m"), "-o", str(artifacts / "bundle"), "--data", data, "--starts", "2"])
    return artifacts


def test_an_exported_bundle_loads_and_steps(artifacts):
    world = load_simulator(artifacts / "bundle", "cpu")
    assert isinstance(world, MDNRNNSimulator) and world.spec.actions.size == 2 and world.spec.fps == 50
    state, _ = world.reset(world.starts)
    _, output = world.step(state, world.starts.new_zeros(2).long())
    assert output.frame.shape == (2, 16, 16, 3) and output.latent.isfinite().all()
    assert list((artifacts / "m" / "videos").glob("*.mp4"))


def test_a_controller_is_evolved_in_the_world_and_evaluated_in_the_environment(artifacts):
    small = {"run": artifacts / "c", "steps": 2, "evaluation.every": 2, "evaluation.episodes": 1, "device": "cpu"}
    learning = {
        "bundle": artifacts / "bundle",
        "population": 4,
        "final_evaluation_episodes": 2,
        "device": "cpu",
        "env.init_args.size": 16,
    }
    learning |= {f"fitness.{k}": v for k, v in {"data": artifacts / "data", "rollouts": 2, "horizon": 10}.items()}
    small |= {f"algorithm.init_args.{name}": value for name, value in learning.items()}
    options = [x for name, value in small.items() for x in (f"--{name}", str(value))]
    main(["agent", "train", "-c", "configs/agents/world_models_cartpole.yaml", *options])
    results = json.loads((artifacts / "c" / "evaluation.json").read_text())["results"]
    assert {name: result["episodes"] for name, result in results.items()} == {
        "latent_and_memory": 2,
        "latent": 2,
        "random": 2,
    }
