"""The whole evolution of a controller, small: in an untrained world, evaluated in CartPole."""

import json

import numpy as np
import pytest
import torch
from factories import diffusion_world, dream

from vwm.core.components import load_component
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.controller_evolution import ControllerEvolution, ControllerFitnessConfig
from vwm.rl.algorithms.evolution_report import summarize_returns
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.worlds.bundle import save_simulator

GAME = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8)


@pytest.fixture
def bundle(tmp_path):
    save_simulator(dream(num_actions=2), tmp_path / "bundle")
    return tmp_path / "bundle"


def evolution(run, bundle, generations=4, env="simulator", every=2, temperature=1.0, **changes) -> AgentTraining:
    fitness = ControllerFitnessConfig(env, rollouts=2, reward="survival", horizon=6, temperature=temperature)
    settings = {"population": 4, "final_evaluation_episodes": 2, "sigma": 1.0, "device": "cpu", **changes}
    evolved = ControllerEvolution(bundle, GAME, fitness=fitness, **settings)
    evaluation = EvaluationConfig(every=every, episodes=1)
    return AgentTraining(run, evolved, generations, checkpoint_every=1, evaluation=evaluation)


def kept(run) -> dict:
    found = {"evaluated": json.loads((run / "evaluation.json").read_text())["results"]}
    for name in ("latent_and_memory", "latent"):
        tables = ("generations", "evaluations")
        found[name] = [(run / "metrics" / f"{name}_{table}.csv").read_text() for table in tables]
        found[name].append(load_component(run / "controllers" / name).linear.weight.tolist())
    return found


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, bundle, capsys):
    evolution(tmp_path / "whole", bundle).run()
    evolution(tmp_path / "part", bundle, generations=3).run()
    evolution(tmp_path / "part", bundle).run()
    whole = kept(tmp_path / "whole")
    assert kept(tmp_path / "part") == whole
    assert np.shape(whole["latent_and_memory"][2]) == (2, 20) and np.shape(whole["latent"][2]) == (2, 4)
    assert whole["latent"][0].count("\n") == 5 and whole["latent"][1].count("\n") == 3
    evaluated = whole["evaluated"]
    assert list(evaluated) == ["latent_and_memory", "latent", "random"]
    assert all(len(found["returns"]) == 2 and min(found["returns"]) >= 8 for found in evaluated.values())
    assert (tmp_path / "part" / "curves.png").stat().st_size > 5000
    assert "latent_and_memory" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no policy to load"):
        evolution(tmp_path / "part", bundle).load_policy()


def test_fitness_in_the_real_environment_is_the_return_of_real_episodes(tmp_path, bundle):
    run = evolution(tmp_path / "run", bundle, generations=1, env="real", inputs=("latent",), every=0)
    run.run()
    start = np.zeros((2, 10))
    start[0, -1], start[1, -2] = 1.0, 1.0  # always right, always left
    fitness = run.algorithm.real_fitness
    assert ((fitness(start, 0) >= 8) & (fitness(start, 0) <= 11)).all()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]["fitness"]
    assert saved["latent"].shape == (1, 4) and (saved["latent"] >= 8).all()


def test_a_run_of_other_settings_is_not_resumed(tmp_path, bundle):
    evolution(tmp_path / "run", bundle, generations=1, inputs=("latent",)).run()
    with pytest.raises(ValueError, match=r"is of a search with .*'sigma': 1\.0.*this one has .*'sigma': 0\.5"):
        evolution(tmp_path / "run", bundle, sigma=0.5, inputs=("latent",)).run()
    with pytest.raises(ValueError, match=r"'temperature': 1\.0.*'temperature': 0\.5"):
        evolution(tmp_path / "run", bundle, temperature=0.5, inputs=("latent",)).run()


def test_wrong_settings_are_named(tmp_path, bundle):
    save_simulator(diffusion_world(), tmp_path / "other")
    with pytest.raises(ValueError, match="holds a DiTSimulator"):
        evolution(tmp_path / "run", tmp_path / "other").run()
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        evolution(tmp_path / "run", bundle, generations=0)
    with pytest.raises(ValueError, match="must name at least one controller"):
        evolution(tmp_path / "run", bundle, inputs=())


def test_the_interval_is_about_the_mean():
    returns = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().numpy() * 5 + 20
    found = summarize_returns(returns)
    assert found["low"] < found["mean"] < found["high"] and found["episodes"] == 400
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * 5 / 20, rel=0.15)
