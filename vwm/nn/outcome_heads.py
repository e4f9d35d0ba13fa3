"""Predict the reward and termination of an action from the dynamics' features of the frame at which it is taken.

The next frame is not used, because the action that ends an episode leads to no recorded frame.

Legend: b batch, t time, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.norm import RMSNorm
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_count
from vwm.nn.two_hot import SymexpTwoHot

TERMINATION_STREAM = -4
"""Folded into a simulator's seed to sample its termination."""


class RewardTermination(NamedTuple):
    """Expected reward, float [b, t], and probability of termination, float [b, t]."""

    reward: Tensor
    terminated: Tensor


class RewardTerminationHeads(ModelMixin, ConfigMixin):
    """Heads for reward (two-hot over symexp bins) and termination (Bernoulli).

    Args:
        width: d, width of the dynamics.
        hidden: width of the hidden layer.
        bins: number of reward bins.
    """

    @register_to_config
    def __init__(self, width: int = 256, hidden: int = 256, bins: int = 255) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * width, hidden), nn.SiLU(), RMSNorm(hidden))
        self.reward = nn.Linear(hidden, bins)
        self.end = nn.Linear(hidden, 1)
        for head in (self.reward, self.end):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.two_hot = SymexpTwoHot(bins)

    def forward(self, features: Tensor, action_embedding: Tensor) -> RewardTermination:
        """Predict from features [b, t, d] of frames and embeddings [b, t, d] of the actions taken at them."""
        x = self.body(torch.cat((features, action_embedding), dim=-1))
        return RewardTermination(self.two_hot.mean(self.reward(x)), self.end(x).squeeze(-1).float().sigmoid())

    def losses(
        self,
        features: Tensor,
        action_embedding: Tensor,
        reward: Tensor,
        terminated: Tensor | None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies of rewards [b, t] and terminations (bool [b, t]; the loss is 0 if they are None).

        Steps whose outcome is not ``known`` (bool [b, t]; None if all are) do not count.
        """
        x = self.body(torch.cat((features, action_embedding), dim=-1))
        weight = None if known is None else known * (known.numel() / mean_count(known, x.dtype))
        loss = self.two_hot.loss(self.reward(x), reward)
        reward_loss = (loss if weight is None else loss * weight).mean()
        end = at_least_float32(self.end(x).squeeze(-1))
        if terminated is None:  # with a gradient of 0, because data-parallel training requires one for every weight
            return reward_loss, end.sum() * 0
        return reward_loss, F.binary_cross_entropy_with_logits(end, terminated.to(end.dtype), weight)


def sample_outcomes(
    outcomes: RewardTerminationHeads | None, features: Tensor, action_embedding: Tensor, seed: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the reward, float [b], and sample the termination, bool [b]; zeros if there are no heads.

    Args:
        outcomes: the heads.
        features: float [b, d], features of the frame at which the action is taken.
        action_embedding: float [b, d].
        seed: int64 [b], seeds of the simulations.
        position: int64 [b], number of frames seen so far.
    """
    if outcomes is None:
        zeros = torch.zeros(len(seed), device=seed.device)
        return zeros, zeros.bool()
    predicted = outcomes(features[:, None].float(), action_embedding[:, None].float())
    chance = seeded_uniform(fold_in(fold_in(seed, TERMINATION_STREAM), position))
    return predicted.reward[:, 0], chance < predicted.terminated[:, 0]
