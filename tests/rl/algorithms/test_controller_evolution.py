"""Evolution of a small controller in an untrained world, evaluated in CartPole."""

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

ENV = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8)


@pytest.fixture
def bundle(tmp_path):
    save_simulator(dream(num_actions=2), tmp_path / "bundle")
    return tmp_path / "bundle"


def make_evolution(run, bundle, generations=4, env="simulator", every=2, temperature=1.0, **changes) -> AgentTraining:
    fitness = ControllerFitnessConfig(env, rollouts=2, reward="survival", horizon=6, temperature=temperature)
    settings = {"population": 4, "final_evaluation_episodes": 2, "sigma": 1.0, "device": "cpu", **changes}
    algorithm = ControllerEvolution(bundle, ENV, fitness=fitness, **settings)
    evaluation = EvaluationConfig(every=every, episodes=1)
    return AgentTraining(run, algorithm, generations, checkpoint_every=1, evaluation=evaluation)


def read_results(run) -> dict:
    results = {"evaluated": json.loads((run / "evaluation.json").read_text())["results"]}
    for name in ("latent_and_memory", "latent"):
        tables = ("generations", "evaluations")
        results[name] = [(run / "metrics" / f"{name}_{table}.csv").read_text() for table in tables]
        results[name].append(load_component(run / "controllers" / name).linear.weight.tolist())
    return results


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, bundle, capsys):
    make_evolution(tmp_path / "uninterrupted", bundle).run()
    make_evolution(tmp_path / "resumed", bundle, generations=3).run()
    make_evolution(tmp_path / "resumed", bundle).run()
    uninterrupted = read_results(tmp_path / "uninterrupted")
    assert read_results(tmp_path / "resumed") == uninterrupted
    assert np.shape(uninterrupted["latent_and_memory"][2]) == (2, 20) and np.shape(uninterrupted["latent"][2]) == (2, 4)
    assert uninterrupted["latent"][0].count("\n") == 5 and uninterrupted["latent"][1].count("\n") == 3
    evaluations = uninterrupted["evaluated"]
    assert list(evaluations) == ["latent_and_memory", "latent", "random"]
    assert all(
        len(evaluation["returns"]) == 2 and min(evaluation["returns"]) >= 8 for evaluation in evaluations.values()
    )
    assert (tmp_path / "resumed" / "curves.png").stat().st_size > 5000
    assert "latent_and_memory" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no policy to load"):
        make_evolution(tmp_path / "resumed", bundle).load_policy()


def test_fitness_in_the_real_environment_is_the_return_of_real_episodes(tmp_path, bundle):
    run = make_evolution(tmp_path / "run", bundle, generations=1, env="real", inputs=("latent",), every=0)
    run.run()
    parameters = np.zeros((2, 10))
    parameters[0, -1], parameters[1, -2] = 1.0, 1.0  # always right, always left
    fitness = run.algorithm.real_fitness
    assert ((fitness(parameters, 0) >= 8) & (fitness(parameters, 0) <= 11)).all()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]["fitness"]
    assert saved["latent"].shape == (1, 4) and (saved["latent"] >= 8).all()


def test_rejects_resuming_with_other_settings(tmp_path, bundle):
    make_evolution(tmp_path / "run", bundle, generations=1, inputs=("latent",)).run()
    with pytest.raises(ValueError, match=r"is of a search with .*'sigma': 1\.0.*this one has .*'sigma': 0\.5"):
        make_evolution(tmp_path / "run", bundle, sigma=0.5, inputs=("latent",)).run()
    with pytest.raises(ValueError, match=r"'temperature': 1\.0.*'temperature': 0\.5"):
        make_evolution(tmp_path / "run", bundle, temperature=0.5, inputs=("latent",)).run()


def test_rejects_worlds_and_settings_that_do_not_fit(tmp_path, bundle):
    save_simulator(diffusion_world(), tmp_path / "other")
    with pytest.raises(ValueError, match="holds a DiTSimulator"):
        make_evolution(tmp_path / "run", tmp_path / "other").run()
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        make_evolution(tmp_path / "run", bundle, generations=0)
    with pytest.raises(ValueError, match="must name at least one controller"):
        make_evolution(tmp_path / "run", bundle, inputs=())


def test_the_confidence_interval_contains_the_mean():
    returns = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().numpy() * 5 + 20
    summary = summarize_returns(returns)
    assert summary["low"] < summary["mean"] < summary["high"] and summary["episodes"] == 400
    assert (summary["high"] - summary["low"]) / 2 == pytest.approx(1.96 * 5 / 20, rel=0.15)
