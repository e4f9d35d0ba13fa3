"""Noise on what a policy or a plan says, where exploring is not a part of it."""

from __future__ import annotations

import torch
from torch import Tensor


def add_exploration_noise(action: Tensor, amount: float, choices: int) -> Tensor:
    """Actions as they are tried out in training.

    Args:
        action: int64 [b] or float [b, a].
        amount: deviation of what is added to continuous actions, or the share of random choices; 0 draws nothing.
        choices: number of discrete actions.
    """
    if not amount:
        return action
    if action.is_floating_point():
        return action + amount * torch.randn_like(action)
    random = torch.randint_like(action, choices)
    return torch.where(torch.rand(action.shape, device=action.device) < amount, random, action)
