"""Heads on agent tokens that predict the recorded actions and rewards of the next time steps.

Behavior cloning and reward prediction with multi-token prediction (Dreamer 4, arXiv 2509.24527, section 3.3): from the
features of frame t, the actions a_t, ..., a_{t+L-1} and the rewards r_t, ..., r_{t+L-1}, each by its own output. Where
a latent holds k frames, t is its last frame, and the steps ahead are single frames. A policy that acts once per latent
holds the first of these actions, so that it suits recordings whose actions were held for k frames, too.

There are two kinds of reward. An agent token depends on the frames up to its own and the actions before it, but not on
the action taken at its frame, so the rewards here are those expected under the recorded policy. They are an auxiliary
loss for the features. The reward and termination for a given action, which imagination needs, are predicted by
``RewardTerminationHeads`` from the same features and the action.

Legend: b batch, t time, d width, n steps ahead, p components of an action, q choices per component, k
frames per latent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.dit.network import DiT
from vwm.nn.norm import RMSNorm
from vwm.nn.ranks import masked_mean
from vwm.nn.two_hot import SymexpTwoHot


class PolicyRewardLosses(NamedTuple):
    """Mean cross-entropies of all predicted actions, of the rewards, and of the first predicted action alone."""

    policy: Tensor
    rewards: Tensor
    next_action: Tensor


class PolicyRewardHeads(ModelMixin, ConfigMixin):
    """Heads for a cloned policy and its rewards.

    A discrete action is one choice. Each dimension of a continuous action is a choice of one of ``action_bins`` values
    from -1 to 1 (as Dreamer 4 does for mouse movements), so that the policy can be multimodal.

    Args:
        width: d, width of the features.
        num_actions: number of discrete actions, or 0.
        action_dims: dimensions of continuous actions, or 0. Exactly one of the two must be set.
        action_bins: number of values per dimension.
        hidden: width of the hidden layer of each head.
        length: L, number of predicted time steps.
        bins: number of reward bins.

    Raises:
        ValueError: neither or both kinds of actions are set, or ``length`` or ``action_bins`` is too small.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 256,
        num_actions: int = 0,
        action_dims: int = 0,
        action_bins: int = 11,
        hidden: int = 256,
        length: int = 8,
        bins: int = 255,
    ) -> None:
        super().__init__()
        if bool(num_actions) == bool(action_dims) or length < 1 or action_bins < 2:
            raise ValueError(
                f"num_actions={num_actions} or action_dims={action_dims} must be given, not both, with length={length} "
                f"of 1 or more and action_bins={action_bins} of 2 or more"
            )
        self.continuous = bool(action_dims)
        self.length = length
        self.num_components = action_dims or 1
        self.num_choices = action_bins if action_dims else num_actions
        self.policy_body = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), RMSNorm(hidden))
        self.reward_body = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), RMSNorm(hidden))
        self.action = nn.Linear(hidden, length * self.num_components * self.num_choices)
        self.reward = nn.Linear(hidden, length * bins)
        for head in (self.action, self.reward):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.two_hot = SymexpTwoHot(bins)

    def policy(self, features: Tensor) -> Tensor:
        """Return logits of the next action: [..., d] -> float [..., num_actions] or [..., action_dims, action_bins]."""
        logits = self._action_logits(features).select(-3, 0)
        return logits if self.continuous else logits.squeeze(-2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of actions, float [..., n, p, q], and rewards, [..., n, bins], from features [..., d]."""
        rewards: Tensor = self.reward(self.reward_body(features)).unflatten(-1, (self.length, -1))
        return self._action_logits(features), rewards.float()

    def _action_logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.action(self.policy_body(features))
        return logits.unflatten(-1, (self.length, self.num_components, self.num_choices)).float()

    def losses(
        self, features: Tensor, actions: Tensor, rewards: Tensor, labeled: Tensor | None = None
    ) -> PolicyRewardLosses:
        """Compute the losses of clips. Time steps after the end of a clip are masked.

        Args:
            features: [b, t, d], of t latents.
            actions: int64 [b, t k] or float [b, t k, a]; ``actions[:, k i]`` is taken at the last frame of latent i.
            rewards: float [b, t k], ``rewards[:, i]`` follows ``actions[:, i]``; NaN after the end of an episode, where
                actions do not count either.
            labeled: bool [b], whether the actions of a clip are known; None if all are.
        """
        action_logits, reward_logits = self(features)
        every = actions.shape[1] // features.shape[1]
        choices, inside = multi_token_targets(self.encode_action(actions), self.length, every)
        inside = inside & multi_token_targets(~rewards.isnan(), self.length, every)[0]
        action_loss = F.cross_entropy(action_logits.flatten(0, -2), choices.flatten(), reduction="none")
        action_loss = action_loss.view(choices.shape).sum(-1)
        action_mask = inside.expand(action_loss.shape)
        if labeled is not None:
            action_mask = action_mask & labeled[:, None, None]
        reward_loss = self.two_hot.loss(reward_logits, multi_token_targets(rewards.nan_to_num(), self.length, every)[0])
        return PolicyRewardLosses(
            policy=masked_mean(action_loss, action_mask),
            rewards=masked_mean(reward_loss, inside.expand(reward_loss.shape)),
            next_action=masked_mean(action_loss[..., 0], action_mask[..., 0]).detach(),
        )

    def encode_action(self, actions: Tensor) -> Tensor:
        """Convert actions [...] or [..., a] to choices, int64 [..., p]: for continuous actions the nearest bins."""
        if not self.continuous:
            return actions[..., None]
        return ((actions.clamp(-1, 1) + 1) * ((self.num_choices - 1) / 2)).round().long()

    def decode_action(self, choices: Tensor) -> Tensor:
        """Convert choices int64 [..., p] to actions, int64 [...] or float [..., a]."""
        return choices * (2 / (self.num_choices - 1)) - 1 if self.continuous else choices[..., 0]


def multi_token_targets(x: Tensor, length: int, every: int = 1) -> tuple[Tensor, Tensor]:
    """Collect the next n values of every k-th time step: [b, t k, ...] -> [b, t, n, ...], and bool [t, n].

    Entry [:, i, j] is ``x[:, k i + j]``, k = ``every``; beyond the end of the clip it is the last value. The bool says
    what lies inside.
    """
    frames = x.shape[1]
    indices = torch.arange(0, frames, every, device=x.device)[:, None] + torch.arange(length, device=x.device)
    return x[:, indices.clamp(max=frames - 1)], indices < frames


def check_policy_matches_dit(policy: PolicyRewardHeads, dynamics: DiT) -> None:
    """Raise ValueError unless the heads have the feature width and the actions of the network."""
    if policy.config.width != dynamics.config.width:
        raise ValueError(
            f"policy.width={policy.config.width} but dynamics.width={dynamics.config.width}: set them equal"
        )
    for name in ("num_actions", "action_dims"):
        policy_value, dynamics_value = policy.config[name], dynamics.config[name]
        if policy_value != dynamics_value:
            raise ValueError(
                f"policy.{name}={policy_value} but dynamics.{name}={dynamics_value}: set them equal (policies for "
                "composite actions are not supported)"
            )
