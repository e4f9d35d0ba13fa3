"""`vwm agent train`, `eval` and `play` as a user types them."""

import json
from pathlib import Path

import pytest
import torch

from vwm.simulator.bundle import load_simulator
from vwm.train.cli import main

CONFIG = """
training:
  class_path: vwm.agents.online.Online
  init_args:
    run: {run}
    game: {{class_path: vwm.agents.environments.GymnasiumGame, init_args: {{env: CartPole-v1}}}}
    steps: 60
    environments: 2
    prefill: 30
    updates: 0.2
    evaluate_every: 30
    evaluate_episodes: 2
    checkpoint_every: 30
    log_every: 2
    agent:
      class_path: vwm.agents.dreamer.Dreamer
      init_args:
        world: {{deter: 16, hidden: 12, stoch: 4, classes: 4, blocks: 2, units: 12}}
        actor: {{width: 12, layers: 1}}
        critic: {{width: 12, layers: 1}}
        horizon: 3
        batch_size: 2
        batch_length: 4
"""


def test_train_go_on_judge_and_watch(tmp_path: Path, capsys) -> None:
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=run))
    main(["agent", "train", "-c", str(config)])
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "episodes.csv", "evaluations.csv", "updates.csv"}
    assert (run / "videos" / "000000060.mp4").stat().st_size > 1000
    main(["agent", "train", "-c", str(config), "--training.init_args.steps", "90"])
    assert "60 decisions" in capsys.readouterr().out  # it went on
    assert len((run / "evaluations.csv").read_text().splitlines()) == 1 + 3
    main(["agent", "eval", str(run), "--episodes", "3"])
    said = json.loads((run / "evaluation.json").read_text())
    assert len(said["agent"]["returns"]) == len(said["random"]["returns"]) == 3
    assert "mean return" in capsys.readouterr().out
    main(["agent", "eval", str(run), "--episodes", "2", "--best", "true"])
    assert json.loads((run / "evaluation.json").read_text())["best"] is True
    main(["agent", "play", str(run), "--out", str(tmp_path / "play"), "--best", "true"])
    assert (tmp_path / "play" / "000.mp4").stat().st_size > 1000
    main(["agent", "export", str(run), "-o", str(tmp_path / "world"), "--best", "true"])
    world = load_simulator(tmp_path / "world")
    assert world.vector_size == 4 and len(world.starts) == 16
    state, _ = world.reset(world.starts)
    assert world.step(state, torch.zeros(16, dtype=torch.int64))[1].frame.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent", "eval", "nowhere"], "give the folder of a run"),
        (["agent", "train", "-c", "CONFIG", "--training.init_args.steps", "0"], "steps must be 1 or more, got 0"),
        (["agent", "train", "-c", "CONFIG", "--training.init_args.game.env", "NoGame-v0"], "NoGame"),
    ],
)
def test_errors_are_a_line(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run"))
    with pytest.raises(SystemExit):
        main([str(config) if argument == "CONFIG" else argument for argument in arguments])
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
