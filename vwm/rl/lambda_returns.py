"""λ-returns: the value of a trajectory from its rewards and a critic's value estimates.

Legend: t time steps of the trajectory, n trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(reward: Tensor, value: Tensor, discount: Tensor, lam: Tensor | float) -> Tensor:
    """Compute TD(λ) returns.

    R[t] = reward[t+1] + discount[t+1] ((1 - lam[t+1]) value[t+1] + lam[t+1] R[t+1]); at the last time step R is
    ``value``, since the trajectory is cut off there, not ended. See Sutton and Barto, Reinforcement Learning, section
    12.1, and Dreamer (arXiv 1912.01603), equation 6.

    Args:
        reward: [t, n], reward[i] is received on arrival at time step i (the first is not used).
        value: [t, n], the critic's estimate at each time step.
        discount: [t, n], the discount factor times the probability that the episode continues at time step i.
        lam: λ, [t, n] or one number; 0 where time step i + 1 belongs to another episode although the environment would
            have continued (a truncated episode), so that the value estimate replaces the rest.

    Returns:
        [t - 1, n], of all time steps but the last.
    """
    lam = lam.to(value).expand_as(value) if isinstance(lam, Tensor) else torch.full_like(value, lam)
    one_step = reward[1:] + discount[1:] * (1 - lam[1:]) * value[1:]
    factors = discount[1:] * lam[1:]
    following = value[-1]
    returns = []
    for step, factor in zip(reversed(one_step.unbind(0)), reversed(factors.unbind(0)), strict=True):
        following = torch.addcmul(step, factor, following)
        returns.append(following)
    return torch.stack(returns[::-1])


def cumulative_discount(discount: Tensor) -> Tensor:
    """Return the discounted probability of reaching each time step: [t, n] -> [t, n], 1 at the first."""
    return torch.cat((torch.ones_like(discount[:1]), discount[:-1])).cumprod(0)
