"""Predict the reward and termination of an action from the dynamics' features of the frame at which it is taken.

A reward may also be read from the frame that the action leads to, as IRIS and DIAMOND do: whether a blow in Boxing hits
is decided by what both players do, and seen only afterwards. A termination is not, because the action that ends an
episode leads to no recorded frame.

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
from vwm.nn.ranks import masked_mean, mean_count
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
        sees_next: whether the reward is read from the features of the next frame, too; a learned vector stands for them
            after the last frame of an episode.
    """

    @register_to_config
    def __init__(self, width: int = 256, hidden: int = 256, bins: int = 255, sees_next: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * width, hidden), nn.SiLU(), RMSNorm(hidden))
        self.reward_body = self.no_next = None
        if sees_next:
            self.reward_body = nn.Sequential(nn.Linear(3 * width, hidden), nn.SiLU(), RMSNorm(hidden))
            self.no_next = nn.Parameter(torch.zeros(width))
        self.reward = nn.Linear(hidden, bins)
        self.end = nn.Linear(hidden, 1)
        for head in (self.reward, self.end):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.two_hot = SymexpTwoHot(bins)

    def forward(
        self, features: Tensor, action_embedding: Tensor, next_features: Tensor | None = None
    ) -> RewardTermination:
        """Predict the outcomes of actions.

        Args:
            features: [b, t, d], of the frames at which the actions are taken.
            action_embedding: [b, t, d].
            next_features: [b, t, d], of the frames that they lead to; without effect unless ``sees_next``. None where
                there are no such frames.
        """
        rewards, ends = self._logits(features, action_embedding, next_features)
        return RewardTermination(self.two_hot.mean(rewards), ends.float().sigmoid())

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
        rewards, ends = self._logits(features, action_embedding, self._features_after(features, terminated))
        weight = None if known is None else known * (known.numel() / mean_count(known, rewards.dtype))
        loss = self.two_hot.loss(rewards, reward)
        reward_loss = (loss if weight is None else loss * weight).mean()
        end = at_least_float32(ends)
        if terminated is None:  # with a gradient of 0, because data-parallel training requires one for every weight
            return reward_loss, end.sum() * 0
        return reward_loss, F.binary_cross_entropy_with_logits(end, terminated.to(end.dtype), weight)

    def _logits(
        self, features: Tensor, action_embedding: Tensor, next_features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of reward bins [b, t, bins] and of terminations [b, t]."""
        taken = torch.cat((features, action_embedding), dim=-1)
        hidden = self.body(taken)
        ends = self.end(hidden).squeeze(-1)
        if self.reward_body is None or self.no_next is None:
            return self.reward(hidden), ends
        after = self.no_next.expand_as(features) if next_features is None else next_features
        return self.reward(self.reward_body(torch.cat((taken, after), dim=-1))), ends

    def _features_after(self, features: Tensor, terminated: Tensor | None) -> Tensor | None:
        """Return the features [b, t, d] of the next frames in clips, with the learned vector where there are none."""
        if self.no_next is None:
            return None
        absent = self.no_next.to(features.dtype).expand_as(features[:, :1])
        after = torch.cat((features[:, 1:], absent), dim=1)
        return after if terminated is None else torch.where(terminated[..., None], absent, after)


def sign_termination_losses(
    signs: Tensor, ends: Tensor, reward: Tensor, terminated: Tensor | None, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropies of the signs of rewards and of terminations, as in IRIS and DIAMOND.

    Args:
        signs: float [b, t, 3], logits of the signs -1, 0 and 1.
        ends: float [b, t, 2], logits of going on and ending.
        reward, terminated, known: see ``RewardTerminationHeads.losses``.
    """
    reward_loss = _mean_cross_entropy(signs, reward.sign().long() + 1, known)
    if terminated is None:  # with a gradient of 0, because data-parallel training requires one for every weight
        return reward_loss, at_least_float32(ends).sum() * 0
    return reward_loss, _mean_cross_entropy(ends, terminated.long(), known)


def _mean_cross_entropy(logits: Tensor, classes: Tensor, known: Tensor | None) -> Tensor:
    """Mean of float [b, t, c] and int64 [b, t], where known."""
    loss = F.cross_entropy(at_least_float32(logits).flatten(0, 1), classes.flatten(), reduction="none")
    return loss.mean() if known is None else masked_mean(loss, known.flatten())


def sample_outcomes(
    outcomes: RewardTerminationHeads | None,
    features: Tensor,
    action_embedding: Tensor,
    seed: Tensor,
    position: Tensor,
    next_features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict the reward, float [b], and sample the termination, bool [b]; zeros if there are no heads.

    Args:
        outcomes: the heads.
        features: float [b, d], features of the frame at which the action is taken.
        action_embedding: float [b, d].
        seed: int64 [b], seeds of the simulations.
        position: int64 [b], number of frames seen before the action.
        next_features: float [b, d], features of the frame that it leads to; only heads that see it need them.
    """
    if outcomes is None:
        zeros = torch.zeros(len(seed), device=seed.device)
        return zeros, zeros.bool()
    taken = features[:, None].float(), action_embedding[:, None].float()
    predicted = outcomes(*taken, None if next_features is None else next_features[:, None].float())
    reward = predicted.reward[:, 0]
    chance = seeded_uniform(fold_in(fold_in(seed, TERMINATION_STREAM), position))
    terminated = chance < predicted.terminated[:, 0]
    if outcomes.config.sees_next:
        reward = torch.where(terminated, outcomes(*taken).reward[:, 0], reward)
    return reward, terminated
