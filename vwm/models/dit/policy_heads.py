"""What an agent token foretells of its frame's future: the actions that the recorded players take, and their rewards.

Behaviour cloning and reward prediction with multi-token prediction (Dreamer 4, arXiv 2509.24527, section 3.3):
from the features of frame t alone, the actions a_t, ..., a_{t+L-1} and the rewards r_t, ..., r_{t+L-1}, each from an
output of its own. An agent token knows the frames up to its own and the actions that led there, and not the one that is
taken there. Hence two kinds of reward: the ones here are what playing on as recorded would earn, and are learned for
what they make of the features; what one certain action earns, and whether it ends the world, is for ``OutcomeHeads`` to
say, which reads the same features and the action besides, and which imagination asks.

Legend: b batch, t time, d width, n steps ahead, p parts of an action, k choices of a part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.models.dit.network import DiT
from vwm.nn.norm import RMSNorm
from vwm.nn.two_hot import SymexpTwoHot


class PolicyRewardLosses(NamedTuple):
    """Mean cross-entropies: of all foretold actions, of the rewards, and of the actions that are taken at once."""

    policy: Tensor
    rewards: Tensor
    next_action: Tensor


class PolicyRewardHeads(ModelMixin, ConfigMixin):
    """A cloned policy and the rewards that it foresees.

    A discrete action is one choice. A dimension of a continuous one is a choice too, between ``action_bins`` values
    from -1 to 1 (Dreamer 4 chooses the mouse's moves among bins), so that a policy may hesitate between two ways
    without taking their mean.

    Args:
        width: d, of the features.
        num_actions: number of discrete actions; or 0.
        action_dims: dimensions of continuous actions; or 0. One of the two must be given.
        action_bins: values of a dimension.
        hidden: width of the one hidden layer of either head.
        length: L, steps that are foretold.
        bins: of the reward.
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
        self.continuous, self.length = bool(action_dims), length
        self.parts, self.choices = (action_dims, action_bins) if action_dims else (1, num_actions)
        self.policy_body, self.reward_body = (
            nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), RMSNorm(hidden)) for _ in range(2)
        )
        self.action = nn.Linear(hidden, length * self.parts * self.choices)
        self.reward = nn.Linear(hidden, length * bins)
        for head in (self.action, self.reward):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.two_hot = SymexpTwoHot(bins)

    def policy(self, features: Tensor) -> Tensor:
        """Logits of what to do now: [..., d] -> float [..., num_actions], or [..., action_dims, action_bins]."""
        now = self._actions(features).select(-3, 0)
        return now if self.continuous else now.squeeze(-2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of actions, float [..., n, p, k], and of rewards, [..., n, bins], now and after: from [..., d]."""
        rewards: Tensor = self.reward(self.reward_body(features)).unflatten(-1, (self.length, -1))
        return self._actions(features), rewards.float()

    def _actions(self, features: Tensor) -> Tensor:
        said: Tensor = self.action(self.policy_body(features)).unflatten(-1, (self.length, self.parts, self.choices))
        return said.float()

    def losses(
        self, features: Tensor, actions: Tensor, rewards: Tensor, labelled: Tensor | None = None
    ) -> PolicyRewardLosses:
        """How well clips are foretold. What lies after a clip's end counts for nothing.

        Args:
            features: [b, t, d].
            actions: int64 [b, t] or float [b, t, a]; ``actions[:, i]`` is taken at frame i.
            rewards: float [b, t], what it earns.
            labelled: bool [b], whether a clip's actions are known; None where all are.
        """
        said, earned = self(features)
        choices, inside = multi_token_targets(self.choice(actions), self.length)
        wrong = F.cross_entropy(said.flatten(0, -2), choices.flatten(), reduction="none").view(choices.shape).sum(-1)
        known = inside.expand(wrong.shape)
        if labelled is not None:
            known = known & labelled[:, None, None]
        unforeseen = self.two_hot.loss(earned, multi_token_targets(rewards, self.length)[0])
        return PolicyRewardLosses(
            _masked_mean(wrong, known),
            _masked_mean(unforeseen, inside.expand(unforeseen.shape)),
            _masked_mean(wrong[..., 0], known[..., 0]).detach(),
        )

    def choice(self, actions: Tensor) -> Tensor:
        """Actions [...] or [..., a] as choices, int64 [..., p]: of a dimension, the bin that lies nearest."""
        if not self.continuous:
            return actions[..., None]
        return ((actions.clamp(-1, 1) + 1) * ((self.choices - 1) / 2)).round().long()

    def chosen(self, choices: Tensor) -> Tensor:
        """The action that choices int64 [..., p] stand for: int64 [...] or float [..., a]."""
        return choices * (2 / (self.choices - 1)) - 1 if self.continuous else choices[..., 0]


def multi_token_targets(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What stands now and next: [b, t, ...] -> [b, t, n, ...] and bool [t, n], whether that is still inside the clip.

    Entry [:, i, j] is ``x[:, i + j]``; beyond the end, the last one.
    """
    frames = x.shape[1]
    places = torch.arange(frames, device=x.device)[:, None] + torch.arange(length, device=x.device)
    return x[:, places.clamp(max=frames - 1)], places < frames


def _masked_mean(x: Tensor, where: Tensor) -> Tensor:
    """Of what is where the mask says; 0, with a gradient (of zero), where that is nowhere."""
    return (x * where).sum() / where.sum().clamp(min=1)


def check_policy_matches_dit(policy: PolicyRewardHeads, dynamics: DiT) -> None:
    """Raise ValueError where heads cannot read the network, or act otherwise than it does."""
    if policy.config.width != dynamics.config.width:
        raise ValueError(
            f"policy.width={policy.config.width} but dynamics.width={dynamics.config.width}: set them equal"
        )
    for name in ("num_actions", "action_dims"):
        mine, wanted = policy.config[name], dynamics.config[name]
        if mine != wanted:
            raise ValueError(
                f"policy.{name}={mine} but dynamics.{name}={wanted}: set them equal (of mixed actions no policy can be "
                "cloned)"
            )
