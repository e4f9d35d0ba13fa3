"""What a way through a world is worth, by what was earned on it and by a critic's word for where it ends.

Legend: t moments of the way, n ways.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(reward: Tensor, value: Tensor, live: Tensor, lam: Tensor | float) -> Tensor:
    """TD(lambda) (Sutton, Barto: Reinforcement Learning, section 12.1; Dreamer, arXiv 1912.01603, equation 6).

    R[t] = reward[t+1] + live[t+1] ((1 - lam[t+1]) value[t+1] + lam[t+1] R[t+1]), and beyond the last moment
    R is ``value``: a way that was cut off there would have gone on.

    Args:
        reward: [t, n], reward[i] came on arriving at moment i (the first is not used).
        value: [t, n], the critic's, of each moment.
        live: [t, n], the discount times the probability that the world goes on at moment i.
        lam: lambda, [t, n] or one number; 0 where the way does not lead on from moment i to the next, though the
            world would (an episode that was truncated), so that the critic's word stands for the rest.

    Returns:
        [t - 1, n], of all moments but the last.
    """
    lam = torch.as_tensor(lam, dtype=value.dtype, device=value.device).expand_as(value)
    known = reward[1:] + live[1:] * (1 - lam[1:]) * value[1:]
    rest = live[1:] * lam[1:]
    ahead, returns = value[-1], []
    for step, factor in zip(reversed(known.unbind(0)), reversed(rest.unbind(0)), strict=True):
        ahead = torch.addcmul(step, factor, ahead)
        returns.append(ahead)
    return torch.stack(returns[::-1])


def cumulative_discount(live: Tensor) -> Tensor:
    """How much each moment counts: the chance of getting there, discounted; [t, n] -> [t, n], 1 at the first."""
    return torch.cat((torch.ones_like(live[:1]), live[:-1])).cumprod(0)
