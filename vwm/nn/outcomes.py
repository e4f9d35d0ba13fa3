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

from vwm.nn.norm import RMSNorm
from vwm.nn.two_hot import TwoHot


class Outcomes(NamedTuple):
    """reward float [b, t] and terminated, the probability that the world ends, float [b, t]."""

    reward: Tensor
    terminated: Tensor


class OutcomeHeads(ModelMixin, ConfigMixin):
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
        self.two_hot = TwoHot(bins)

    def forward(self, features: Tensor, lead: Tensor) -> Outcomes:
        """What comes of actions: features [b, t, d] of frames and the vectors [b, t, d] of the actions taken there."""
        x = self.body(torch.cat((features, lead), dim=-1))
        return Outcomes(self.two_hot.mean(self.reward(x)), self.end(x).squeeze(-1).float().sigmoid())

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
