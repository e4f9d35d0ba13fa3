"""Crafter behind Gymnasium's face: equal seeds and actions give equal episodes, and death alone ends the world."""

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.env_ids import make_env

pytest.importorskip("crafter", reason="Crafter is not installed")

CRAFTER = "vwm/Crafter-v0"


def test_equal_seeds_and_actions_give_equal_episodes() -> None:
    def play(clutter: int) -> list:
        moved = [object() for _ in range(clutter)]  # noqa: F841 (other places in memory, and so other orders of sets)
        env, rng = make_env(CRAFTER, {}), np.random.default_rng(0)
        seen, over = [env.reset(seed=4)[0]], False
        while not over and len(seen) < 250:
            shown, reward, terminated, truncated, _ = env.step(int(rng.integers(17)))
            seen.append((shown.tobytes(), reward))
            over = terminated or truncated
        return [seen[0].tobytes(), *seen[1:]]

    assert play(0) == play(77_777)


def test_death_ends_the_world_and_the_limit_of_time_does_not() -> None:
    env = make_env(CRAFTER, {"length": 30, "size": 32})
    shown, _ = env.reset(seed=0)
    assert shown.shape == (32, 32, 3) and env.unwrapped.get_action_meanings()[6] == "sleep"
    outcomes = [env.step(0) for _ in range(30)]
    assert [o[2:4] for o in outcomes] == [(False, False)] * 29 + [(False, True)]
    assert sum(outcomes[-1][4]["achievements"].values()) == 0
    env.unwrapped._game._player.health = 0
    assert env.step(0)[2:4] == (True, False)


def test_agents_play_it() -> None:
    worlds = GymnasiumEnvSpec(CRAFTER, time_limit=3).open(2, seed=0)
    moment = worlds.reset()
    assert moment.observation.shape == (2, 64, 64, 3) and worlds.spaces.actions.names[6] == "sleep"
    moments = [worlds.step(torch.tensor([6, 0])) for _ in range(3)]
    assert [m.is_last.all().item() for m in moments] == [False, False, True] and not moments[-1].is_terminal.any()
    worlds.close()
