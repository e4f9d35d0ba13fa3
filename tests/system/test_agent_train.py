"""`vwm agent train`, `eval` and `play` from the command line."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from vwm.cli.main import main
from vwm.runs.run_folder import RunFolder
from vwm.worlds.bundle import load_simulator

ENV = {"class_path": "vwm.envs.batched_envs.GymnasiumEnvSpec", "init_args": {"env": "CartPole-v1"}}
CONFIG = """
run: {run}
steps: 60
checkpoint_every: 30
log_every: 2
evaluation: {{every: 30, episodes: 2}}
algorithm:
  class_path: vwm.rl.OnlineLearning
  init_args:
    env: {{class_path: vwm.envs.batched_envs.GymnasiumEnvSpec, init_args: {{env: CartPole-v1}}}}
    num_envs: 2
    prefill: 30
    updates_per_decision: 0.2
    agent:
      class_path: vwm.rl.algorithms.dreamer.Dreamer
      init_args:
        world_model: {{deter: 16, hidden: 12, stoch: 4, classes: 4, blocks: 2, units: 12}}
        actor: {{width: 12, layers: 1}}
        critic: {{width: 12, layers: 1}}
        imagination: {{horizon: 3}}
        batch_size: 2
        batch_length: 4
"""


@pytest.mark.usefixtures("no_curves")
def test_a_run_is_trained_resumed_evaluated_played_and_exported(tmp_path: Path, capsys) -> None:
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=run))
    main(["agent", "train", "-c", str(config)])
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "checkpoints", "metrics", "videos"}
    assert {p.name for p in (run / "metrics").iterdir()} == {"episodes.csv", "evaluations.csv", "updates.csv"}
    assert (run / "videos" / "000000060.mp4").stat().st_size > 1000
    main(["agent", "train", "-c", str(config), "--steps", "90"])
    assert "60 decisions" in capsys.readouterr().out  # it resumed
    assert len((run / "metrics" / "evaluations.csv").read_text().splitlines()) == 1 + 3
    main(["agent", "eval", str(run), "--episodes", "3"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["agent"]["returns"]) == len(evaluation["random"]["returns"]) == 3
    assert "mean return" in capsys.readouterr().out
    main(["agent", "eval", str(run), "--episodes", "2", "--best"])
    assert json.loads((run / "evaluation.json").read_text())["best"] is True
    main(["agent", "play", str(run), "--out", str(tmp_path / "play"), "--best"])
    assert (tmp_path / "play" / "000.mp4").stat().st_size > 1000
    main(["agent", "export", str(run), "-o", str(tmp_path / "world"), "--best"])
    world = load_simulator(tmp_path / "world")
    assert world.spec.context.shape[0] == 4 and len(world.starts) == 16
    state, _ = world.reset(world.starts)
    assert world.step(state, torch.zeros(16, dtype=torch.int64))[1].frame.isfinite().all()


@pytest.mark.usefixtures("no_curves")
def test_changed_settings_of_an_existing_run_are_rejected_and_change_no_file(tmp_path: Path, capsys) -> None:
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=run))
    main(["agent", "train", "-c", str(config)])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ppo = "vwm.rl.algorithms.PPO"
    for arguments, message in (
        (["-c", str(config), "--algorithm.agent.world_model.deter", "24"], "world_model.deter=16, not 24"),
        (["-c", str(config), "--algorithm.env.time_limit", "9"], "env.init_args.time_limit=None, not 9"),
        (["-c", str(config), "--seed", "1"], "seed=0, not 1"),
        (["--run", str(run), "--algorithm", ppo, "--algorithm.env", str(ENV)], f"OnlineLearning, not {ppo}"),
    ):
        with pytest.raises(SystemExit):
            main(["agent", "train", *arguments])
        error = capsys.readouterr().err
        assert message in error and "choose another folder" in error
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with RunFolder(run).lock(), pytest.raises(SystemExit):
        main(["agent", "train", "-c", str(config)])
    assert "another training writes there" in capsys.readouterr().err


MODULE = """
import gymnasium


class NotRenderable(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_left = 5
        return self.observation_space.low, {}

    def step(self, action):
        self.steps_left -= 1
        return self.observation_space.low, float(action), self.steps_left == 0, False, {}


gymnasium.register("NotRenderable-v0", NotRenderable)
"""


@pytest.mark.usefixtures("no_curves")
def test_an_environment_of_the_current_folder_works_without_rendering(tmp_path: Path, monkeypatch, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run="run").replace("CartPole-v1", "ones_own:NotRenderable-v0"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit):
        main(["agent", "train", "-c", "config.yaml"])
    assert "there is no module 'ones_own': install it, or put it in the current folder" in capsys.readouterr().err
    (tmp_path / "ones_own.py").write_text(MODULE)
    importlib.invalidate_caches()
    main(["agent", "train", "-c", "config.yaml"])
    assert not (tmp_path / "run" / "videos").exists()
    assert "next: vwm agent eval run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent", "eval", "nowhere"], "give the folder of a run"),
        (["agent", "train", "-c", "CONFIG", "--steps", "0"], "steps must be 1 or more, got 0"),
        (["agent", "train", "-c", "CONFIG", "--algorithm.env.env", "NoGame-v0"], "NoGame"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run"))
    with pytest.raises(SystemExit):
        main([str(config) if argument == "CONFIG" else argument for argument in arguments])
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
