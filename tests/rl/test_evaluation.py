"""Evaluations: episodes of their own, which leave no trace in what a training draws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.agent import PolicyStep
from vwm.rl.evaluation import evaluate_policy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def player(device: str) -> SimpleNamespace:
    """Pushes the cart to where a coin of this device falls."""

    def act(carry, time_step, explore):
        return PolicyStep(torch.randint(2, (len(time_step.reward),), device=device), carry, {})

    return SimpleNamespace(device=torch.device(device), init_carry=lambda batch: (), act=act)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_training_draws_does_not_know_of_evaluations(device: str) -> None:
    game = GymnasiumEnvSpec("CartPole-v1")
    torch.manual_seed(1)
    torch.rand(3, device=device)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    torch.rand(3, device=device)
    found = [evaluate_policy(player(device), game, 5, seed=3).returns.tolist()]
    assert torch.equal(torch.rand(3, device=device), expected)
    found.append(evaluate_policy(player(device), game, 5, seed=3).returns.tolist())
    assert found[0] == found[1] != evaluate_policy(player(device), game, 5, seed=4).returns.tolist()
