"""Crafter as a Gymnasium environment: it is deterministic given seed and actions, and only death terminates it."""

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.env_ids import make_env
from vwm.envs.wrapped_env import read_achievements

pytest.importorskip("crafter", reason="Crafter is not installed")

CRAFTER = "vwm/Crafter-v0"


def test_equal_seeds_and_actions_give_equal_episodes() -> None:
    def run_episode(num_allocations: int) -> list:
        # Other memory addresses, and so other orders of sets.
        allocated = [object() for _ in range(num_allocations)]  # noqa: F841
        env, rng = make_env(CRAFTER, {}), np.random.default_rng(0)
        trajectory, done = [env.reset(seed=4)[0]], False
        while not done and len(trajectory) < 250:
            observation, reward, terminated, truncated, _ = env.step(int(rng.integers(17)))
            trajectory.append((observation.tobytes(), reward))
            done = terminated or truncated
        return [trajectory[0].tobytes(), *trajectory[1:]]

    assert run_episode(0) == run_episode(77_777)


def test_death_terminates_and_the_time_limit_truncates() -> None:
    env = make_env(CRAFTER, {"length": 30, "size": 32})
    observation, _ = env.reset(seed=0)
    assert observation.shape == (32, 32, 3) and env.unwrapped.get_action_meanings()[6] == "sleep"
    outcomes = [env.step(0) for _ in range(30)]
    assert [o[2:4] for o in outcomes] == [(False, False)] * 29 + [(False, True)]
    assert sum(outcomes[-1][4]["achievements"].values()) == 0
    assert read_achievements(outcomes[-1][4]) == dict.fromkeys(outcomes[-1][4]["achievements"], False)
    env.unwrapped._game._player.health = 0
    assert env.step(0)[2:4] == (True, False)


def test_it_opens_as_a_batched_environment() -> None:
    envs = GymnasiumEnvSpec(CRAFTER, time_limit=3).open(2, seed=0)
    time_step = envs.reset()
    assert time_step.observation.shape == (2, 64, 64, 3) and envs.spaces.actions.names[6] == "sleep"
    time_steps = [envs.step(torch.tensor([6, 0])) for _ in range(3)]
    assert [m.is_last.all().item() for m in time_steps] == [False, False, True] and not time_steps[-1].is_terminal.any()
    envs.close()
