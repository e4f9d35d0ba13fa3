"""What an action earns and whether it ends the world, read from the dynamics' features of the frame before it.

From the frame before, not the one after: the action that ends an episode leads to no recorded frame.

Legend: b batch, t time, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.norm import RMSNorm
from vwm.nn.two_hot import SymexpTwoHot

TERMINATION_STREAM = -4
"""What a world's seed is folded with for drawing its end."""


class RewardTermination(NamedTuple):
    """reward float [b, t] and terminated, the probability that the world ends, float [b, t]."""

    reward: Tensor
    terminated: Tensor


class RewardTerminationHeads(ModelMixin, ConfigMixin):
    """Reward (two-hot over symexp bins) and termination (Bernoulli).

    Args:
        width: d, of the dynamics.
        hidden: width of the one hidden layer.
        bins: of the reward.
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

    def forward(self, features: Tensor, lead: Tensor) -> RewardTermination:
        """What comes of actions: features [b, t, d] of frames and the vectors [b, t, d] of the actions taken there."""
        x = self.body(torch.cat((features, lead), dim=-1))
        return RewardTermination(self.two_hot.mean(self.reward(x)), self.end(x).squeeze(-1).float().sigmoid())

    def losses(
        self, features: Tensor, lead: Tensor, reward: Tensor, terminated: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies of rewards [b, t] and of ends (bool [b, t]; 0 where they are not told)."""
        x = self.body(torch.cat((features, lead), dim=-1))
        loss = self.two_hot.loss(self.reward(x), reward).mean()
        end = self.end(x).squeeze(-1).float()
        if terminated is None:  # with a gradient (of zero), which data-parallel training expects of every weight
            return loss, end.sum() * 0
        return loss, F.binary_cross_entropy_with_logits(end, terminated.float())


def sample_outcomes(
    outcomes: RewardTerminationHeads | None, features: Tensor, lead: Tensor, seed: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Reward float [b], and whether the world ends, bool [b]; zeros where there are no heads.

    Args:
        outcomes: the heads.
        features: float [b, d], of the frame that the action is taken at.
        lead: float [b, d], the vector of the action.
        seed: int64 [b], of each world.
        position: int64 [b], frames that each has seen.
    """
    if outcomes is None:
        zeros = torch.zeros(len(seed), device=seed.device)
        return zeros, zeros.bool()
    said = outcomes(features[:, None].float(), lead[:, None].float())
    chance = seeded_uniform(fold_in(fold_in(seed, TERMINATION_STREAM), position))
    return said.reward[:, 0], chance < said.terminated[:, 0]
