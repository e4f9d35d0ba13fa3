"""The whole evolution of a controller, small: in a dream of noise, judged in CartPole."""

import json

import numpy as np
import pytest
import torch
from factories import diffusion_world, dream

from vwm.core.components import load_component
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.algorithms.controller_evolution import ControllerEvolution, summarize_returns
from vwm.worlds.bundle import save_simulator

GAME = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8)


@pytest.fixture
def bundle(tmp_path):
    save_simulator(dream(num_actions=2), tmp_path / "bundle")
    return tmp_path / "bundle"


def evolution(run, bundle, **changes) -> ControllerEvolution:
    settings = {"reward": "survival", "horizon": 6, "population": 4, "rollouts": 2, "generations": 4}
    settings |= {"evaluate_every": 2, "evaluate_episodes": 1, "episodes": 2, "sigma": 1.0, "device": "cpu"}
    return ControllerEvolution(run, bundle, GAME, **{**settings, **changes})


def kept(run) -> dict:
    found = {"judged": json.loads((run / "evaluation.json").read_text())["results"]}
    for sees in ("latent_and_memory", "latent"):
        found[sees] = [(run / sees / f"{name}.csv").read_text() for name in ("generations", "watched")]
        found[sees].append(load_component(run / sees / "controller").linear.weight.tolist())
    return found


def test_a_run_that_was_broken_off_becomes_the_unbroken_one(tmp_path, bundle, capsys):
    evolution(tmp_path / "whole", bundle).run()
    part = evolution(tmp_path / "part", bundle, generations=3)
    part._evolve("latent_and_memory")
    (tmp_path / "part" / "latent_and_memory" / "told.tmp").write_bytes(b"half a file")
    evolution(tmp_path / "part", bundle).run()
    whole = kept(tmp_path / "whole")
    assert kept(tmp_path / "part") == whole
    assert np.shape(whole["latent_and_memory"][2]) == (2, 20) and np.shape(whole["latent"][2]) == (2, 4)
    assert whole["latent"][0].count("\n") == 5 and whole["latent"][1].count("\n") == 3
    judged = whole["judged"]
    assert list(judged) == ["latent_and_memory", "latent", "random"]
    assert all(len(found["returns"]) == 2 and min(found["returns"]) >= 8 for found in judged.values())
    assert (tmp_path / "part" / "curves.png").stat().st_size > 5000
    assert "latent_and_memory" in capsys.readouterr().out


def test_in_reality_a_fitness_is_the_return_of_real_episodes(tmp_path, bundle):
    run = evolution(tmp_path / "run", bundle, where="reality", generations=1, sees=("latent",), evaluate_every=0)
    start = np.zeros((2, 10))
    start[0, -1], start[1, -2] = 1.0, 1.0  # always right, always left
    assert ((run.fitness(start, 0) >= 8) & (run.fitness(start, 0) <= 11)).all()
    run.run()
    told = np.load(tmp_path / "run" / "latent" / "told.npz")["fitness"]
    assert told.shape == (1, 4) and (told >= 8).all()


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path, bundle):
    evolution(tmp_path / "run", bundle, generations=1)._evolve("latent")
    with pytest.raises(ValueError, match=r"is of a search with .*'sigma': 1\.0.*this one has .*'sigma': 0\.5"):
        evolution(tmp_path / "run", bundle, sigma=0.5)._evolve("latent")
    with pytest.raises(ValueError, match=r"'temperature': 1\.0.*'temperature': 0\.5"):
        evolution(tmp_path / "run", bundle, temperature=0.5)._evolve("latent")
    evolution(tmp_path / "run", bundle, generations=2)._evolve("latent")


def test_wrong_settings_are_named(tmp_path, bundle):
    save_simulator(diffusion_world(), tmp_path / "other")
    with pytest.raises(ValueError, match="holds a DiTSimulator"):
        evolution(tmp_path / "run", tmp_path / "other")
    with pytest.raises(ValueError, match="generations=0"):
        evolution(tmp_path / "run", bundle, generations=0)
    with pytest.raises(ValueError, match="must name a controller"):
        evolution(tmp_path / "run", bundle, sees=())


def test_the_interval_is_about_the_mean():
    returns = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().numpy() * 5 + 20
    found = summarize_returns(returns)
    assert found["low"] < found["mean"] < found["high"] and found["episodes"] == 400
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * 5 / 20, rel=0.15)
