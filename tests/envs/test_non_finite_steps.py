"""Observations and rewards that are not finite are reported with their environment, episode and step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec


class BrokenEnv(gymnasium.Env):
    """Gives the observation or the reward NaN at its third step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        is_third = self.count == 3
        value = np.nan if is_third and self.broken == "observation" else 0
        reward = float("nan") if is_third and self.broken == "reward" else 1.0
        return np.full(2, value, np.float32), reward, False, False, {}


@pytest.mark.parametrize(
    ("broken", "message"),
    [("observation", "the observation has values that are not finite"), ("reward", "the reward is nan")],
)
def test_the_step_is_named(monkeypatch: pytest.MonkeyPatch, broken: str, message: str) -> None:
    monkeypatch.setitem(gymnasium.registry, "Broken-v0", gymnasium.envs.registration.EnvSpec("Broken-v0", BrokenEnv))
    envs = GymnasiumEnvSpec("Broken-v0", options={"broken": broken}).open(2, seed=0)
    envs.reset()
    action = torch.zeros(2, dtype=torch.int64)
    envs.step(action)
    envs.step(action)
    with pytest.raises(ValueError, match=f"environment 0, episode 0, step 3: {message}"):
        envs.step(action)
