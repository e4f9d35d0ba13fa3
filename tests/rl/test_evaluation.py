"""Evaluations: seeded episodes that do not change the random state of training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
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
