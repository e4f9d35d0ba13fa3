"""Exploration noise for policies and planners that do not explore by themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def add_exploration_noise(action: Tensor, noise_scale: float, num_actions: int) -> Tensor:
    """Return actions with noise.

    Args:
        action: int64 [b] or float [b, a].
        noise_scale: standard deviation of the noise on continuous actions, or the fraction of discrete actions that are
            replaced by random ones; 0 draws nothing.
        num_actions: number of discrete actions.
    """
    if not noise_scale:
        return action
    if action.is_floating_point():
        return action + noise_scale * torch.randn_like(action)
    random_action = torch.randint_like(action, num_actions)
    return torch.where(torch.rand(action.shape, device=action.device) < noise_scale, random_action, action)
