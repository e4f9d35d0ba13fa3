"""Composite actions through every face of a world, in planners and in agents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from count_world import CountWorld
from factories import composite_parts, composite_space, diffusion_world
from gymnasium import spaces
from stable_baselines3 import PPO as StableBaselinesPPO

from vwm.envs.wrapped_env import WrappedEnv
from vwm.eval.rollouts import random_action_sequences
from vwm.planning.cem import CEM
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.imagined_rollout import simulator_env_spaces
from vwm.rl.algorithms.ppo import PPO
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.worlds.bundle import load_simulator, save_simulator
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.gymnasium_env import SimulatorEnv, SimulatorVectorEnv
from vwm.worlds.simulated_env import SimulatedBatchedEnv, SimulatedEnvSpec
from vwm.worlds.stable_baselines import StableBaselinesVecEnv

HELD = {"color": 2, "keys": np.array([1, 0, 1, 0], np.int8), "mouse": np.array([0.5, -1], np.float32)}


def test_a_dict_of_parts_is_an_action() -> None:
    env = SimulatorEnv(CountWorld("composite"))
    assert env.action_space == spaces.Dict(
        [
            ("color", spaces.Discrete(3)),
            ("keys", spaces.MultiBinary(4)),
            ("mouse", spaces.Box(-1.0, 1.0, (2,), np.float32)),
        ]
    )
    env.reset(seed=0)
    assert env.action_space.contains(HELD) and env.step(HELD)[1] == 2
    with pytest.raises(ValueError, match="action column 'color' must be"):
        env.step({**HELD, "color": 3})
    flat = SimulatorEnv(CountWorld("composite"), flat_actions=True)
    flat.reset(seed=0)
    assert flat.action_space == spaces.Box(-1.0, 1.0, (7,), np.float32)
    assert flat.step(np.array([0, 0.1, -0.1, 1, 0, 0, 0], np.float32))[1] == 2


def test_batches_take_parts_with_the_worlds_first() -> None:
    envs = SimulatorVectorEnv(CountWorld("composite"), 2)
    envs.reset(seed=0)
    actions = {"color": np.array([0, 1]), "keys": np.array([[1, 1, 1, 0], [0, 0, 0, 0]]), "mouse": np.zeros((2, 2))}
    assert envs.step(actions)[1].tolist() == [3, 0]
    with pytest.raises(ValueError, match="takes no Dict of actions: make the environments with flat_actions=True"):
        StableBaselinesVecEnv(SimulatorVectorEnv(CountWorld("composite"), 2, autoreset_mode="SameStep"))


def test_agents_act_in_the_flat_space() -> None:
    envs = SimulatedBatchedEnv(CountWorld("composite"), 2, seed=0)
    assert (
        envs.spaces.actions == composite_space().flat == simulator_env_spaces(CountWorld("composite"), "frame").actions
    )
    envs.reset()
    flat = torch.tensor([[0, 1, 1, 1, -1, 0, 0], [0, -1, -1, -1, 0, 0, 0.0]])
    assert envs.step(flat).reward.tolist() == [3, 0]


class KeysObjective:
    """A sequence costs the distance of each step's count from 2, so that the first step holds two keys."""

    def step_cost(self, output, problems):
        return (output.reward - 2).abs()

    def sequence_cost(self, rollout):
        return rollout.costs.sum(1)


def test_planners_and_measures_draw_actions_of_the_world() -> None:
    world = CountWorld("composite")
    drawn = random_action_sequences(world.spec.actions, torch.arange(3), 5)
    world.spec.actions.check_rows(drawn)
    state, _ = world.reset(world.starts[:2])
    plan = CEM(horizon=2, samples=64, iterations=3).plan(world, state, KeysObjective(), seed=0)
    world.spec.actions.check_rows(plan.actions)
    assert plan.actions[..., 1:5].sum(-1)[:, 0].tolist() == [2, 2]
    with pytest.raises(ValueError, match="members differ in their actions"):
        EnsembleSimulator([world, CountWorld("continuous")])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("composite") / "world"
    world = diffusion_world(outcomes=True, size=40, action_parts=composite_parts())
    save_simulator(world, path)
    assert load_simulator(path, "cpu").spec.actions == world.spec.actions == composite_space()
    return path


def test_a_bundle_is_an_environment_of_its_parts(bundle: Path) -> None:
    env = WrappedEnv("vwm/World-v0", {"bundle": bundle, "device": "cpu"}, 40)
    assert env.actions.space == composite_space()
    env.reset(seed=0)
    env.step(np.array([1, 1, 0, 1, 0, 0.5, -0.5], np.float32))
    assert env.observe().shape == (40, 40, 3)


@pytest.mark.filterwarnings("ignore:.*truncated mini-batch.*:UserWarning")
def test_ppo_learns_through_gymnasium(bundle: Path, tmp_path: Path) -> None:
    env = SimulatorEnv(load_simulator(bundle, "cpu"), max_episode_steps=4, flat_actions=True)
    StableBaselinesPPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8)
    spec = SimulatedEnvSpec(bundle, time_limit=4, device="cpu")
    algorithm = PPO(spec, num_envs=2, options={"n_steps": 4, "batch_size": 8, "n_epochs": 1})
    training = AgentTraining(tmp_path, algorithm, 8, evaluation=EvaluationConfig(8, 2))
    training.run()
    assert algorithm.progress >= 8
