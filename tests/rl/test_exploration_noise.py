"""Exploration noise: its scale, and no random draws without it."""

import torch

from vwm.rl.exploration_noise import add_exploration_noise


def test_continuous_actions_get_noise_of_the_given_standard_deviation() -> None:
    torch.manual_seed(0)
    noisy = add_exploration_noise(torch.full((20_000, 1), 0.5), 0.3, 1)
    assert abs(noisy.mean() - 0.5) < 0.01 and abs(noisy.std() - 0.3) < 0.01


def test_discrete_actions_are_random_with_the_given_probability() -> None:
    torch.manual_seed(0)
    noisy = add_exploration_noise(torch.zeros(20_000, dtype=torch.int64), 0.4, 4)
    assert abs((noisy != 0).float().mean() - 0.3) < 0.02 and set(noisy.tolist()) == {0, 1, 2, 3}


def test_zero_noise_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    action = torch.rand(3, 2)
    state = torch.get_rng_state()
    assert add_exploration_noise(action, 0.0, 2) is action and torch.equal(state, torch.get_rng_state())
