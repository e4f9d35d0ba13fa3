"""Evaluations: seeded episodes that do not change the random state of training."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.held_actions import HeldActionEnv
from vwm.rl.agent import PolicyStep
from vwm.rl.evaluation import evaluate_policy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def make_random_policy(device: str) -> SimpleNamespace:
    """Make a policy whose random actions are drawn on the device."""

    def act(carry, time_step, explore):
        return PolicyStep(torch.randint(2, (len(time_step.reward),), device=device), carry, {})

    return SimpleNamespace(device=torch.device(device), init_carry=lambda batch: (), act=act)


@pytest.mark.parametrize("device", DEVICES)
def test_evaluations_do_not_change_the_random_state_of_training(device: str) -> None:
    env = GymnasiumEnvSpec("CartPole-v1")
    torch.manual_seed(1)
    torch.rand(3, device=device)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    torch.rand(3, device=device)
    returns = [evaluate_policy(make_random_policy(device), env, 5, seed=3).returns.tolist()]
    assert torch.equal(torch.rand(3, device=device), expected)
    returns.append(evaluate_policy(make_random_policy(device), env, 5, seed=3).returns.tolist())
    assert returns[0] == returns[1] != evaluate_policy(make_random_policy(device), env, 5, seed=4).returns.tolist()


class CountdownEnv(gymnasium.Env):
    """Succeeds for one step where its generator says so, and ends two steps later."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.goal = 0, int(self.np_random.integers(2))
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        reached = self.steps == 2 and self.goal == 1
        return self.observation_space.low, float(self.goal), self.steps == 4, False, {self.name: self.said(reached)}


class SuccessEnv(CountdownEnv):
    name, said = "is_success", staticmethod(bool)


class GoalsEnv(CountdownEnv):
    name, said = "achievements", staticmethod(lambda reached: {"always": 3, "never": 0, "drawn": int(reached)})


@pytest.mark.parametrize("action_repeat", [1, 3])
def test_goals_that_an_episode_reaches_are_counted(monkeypatch: pytest.MonkeyPatch, action_repeat: int) -> None:
    for kind, name in ((SuccessEnv, "success"), (GoalsEnv, "drawn")):
        monkeypatch.setitem(gymnasium.registry, "Goals-v0", gymnasium.envs.registration.EnvSpec("Goals-v0", kind))
        spec = GymnasiumEnvSpec("Goals-v0", action_repeat=action_repeat)
        result = evaluate_policy(None, spec, episodes=11, seed=0, num_envs=4)
        share = (result.returns > 0).mean()  # the return says whether the episode had a goal
        assert 0 < share < 1 and result.achievements[name] == share
    held = HeldActionEnv(GymnasiumEnvSpec("Goals-v0"), frames=4, count=3, seed=0)
    held.reset()
    ended = held.step(torch.zeros(3, dtype=torch.int64))
    assert [goals["drawn"] for goals in held.achievements()] == (ended.reward > 0).tolist()
    assert result.achievements == {"always": 1.0, "never": 0.0, "drawn": share}
    assert result.score == pytest.approx((101 * 1 * (1 + 100 * share)) ** (1 / 3) - 1)
    assert evaluate_policy(None, GymnasiumEnvSpec("CartPole-v1"), 2, seed=0).score is None
