"""The networks and the losses of soft actor-critic (Haarnoja et al., arXiv 1812.05905), which learns from transitions.

Legend: b batch, k size of an observation, a dimensions of an action.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.checks import check_fraction, check_not_negative, check_positive
from vwm.core.spaces import ActionSpace
from vwm.nn.member_linear import MemberLinear
from vwm.nn.precision import at_least_float32
from vwm.rl.algorithms.actor import Actor, ActorConfig, TanhNormalActionDistribution
from vwm.rl.optimizer_step import backward_and_step
from vwm.rl.transitions import Transitions


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic; the defaults are the paper's.

    Attributes:
        width, layers: of the hidden layers of the actor and of the critics.
        discount: of returns.
        tau: rate at which the target critics move toward the critics at each update.
        target_entropy: that the temperature holds the policy at, in nats; None is minus the dimensions of actions.
        init_temperature: weight of the entropy at first.
        lr: of all networks and the temperature.
        max_grad_norm: largest gradient norm of each network.

    Raises:
        ValueError: a value is out of range.
    """

    width: int = 256
    layers: int = 2
    discount: float = 0.99
    tau: float = 0.005
    target_entropy: float | None = None
    init_temperature: float = 1.0
    lr: float = 3e-4
    max_grad_norm: float = math.inf

    def __post_init__(self) -> None:
        check_positive(width=self.width, layers=self.layers)
        check_fraction(discount=self.discount, tau=self.tau)
        check_not_negative(lr=self.lr, max_grad_norm=self.max_grad_norm)
        if not self.init_temperature > 0:
            raise ValueError(f"init_temperature must be above 0, got {self.init_temperature}")


class TwinCritics(nn.Module):
    """Two networks of the value of an action, of the same shape.

    Args:
        observation_size, action_dims: k and a.
        width, layers: of the hidden layers.
    """

    def __init__(self, observation_size: int, action_dims: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [observation_size + action_dims, *[width] * layers, 1]
        self.layers = nn.ModuleList(MemberLinear(2, *pair) for pair in pairwise(sizes))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the values [2, b] of actions [b, a] at observations [b, k]."""
        hidden = torch.cat((observation, action), dim=-1).expand(2, -1, -1)
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        return at_least_float32(self.layers[-1](hidden)[..., 0])


class SoftActorCritic(nn.Module):
    """A policy that maximizes return and entropy, with two critics and a temperature that learns.

    The actor is that of ``Actor`` with ``tanh_normal``: other than in the paper, the mean before tanh lies in -5..5, so
    that tanh does not saturate, and the deviation is a softplus, not the exponential of a bounded number.

    Args:
        observation_size: k.
        actions: continuous ones.
        config: see ``SACConfig``.

    Raises:
        ValueError: actions are discrete.
    """

    def __init__(self, observation_size: int, actions: ActionSpace, config: SACConfig) -> None:
        super().__init__()
        if actions.kind != "continuous":
            raise ValueError(
                f"soft actor-critic takes continuous actions, these are {actions.size} {actions.kind} ones: use MuZero "
                "or DreamerV3 for them"
            )
        self.config = config
        self.target_entropy = -float(actions.size) if config.target_entropy is None else config.target_entropy
        self.actor = Actor(
            observation_size, actions,
            ActorConfig(
                continuous_distribution="tanh_normal", width=config.width, layers=config.layers, norm="none",
                activation="relu", min_std=1e-3, init_std=1.0,
            ),
        )  # fmt: skip
        self.critics = TwinCritics(observation_size, actions.size, config.width, config.layers)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.init_temperature)))
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), config.lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), config.lr)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], config.lr)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimizers by name."""
        return {
            "actor": self.actor_optimizer,
            "critic": self.critic_optimizer,
            "temperature": self.temperature_optimizer,
        }

    def sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the policy's actions [b, a] at observations [b, k]; also return their log-probabilities [b]."""
        distribution = self.actor(observation)
        assert isinstance(distribution, TanhNormalActionDistribution)
        return distribution.sample_with_log_prob()

    def mode(self, observation: Tensor) -> Tensor:
        """Return the actions [b, a] to take without exploring."""
        distribution: TanhNormalActionDistribution = self.actor(observation)
        return distribution.mode()

    def learn(self, batch: Transitions) -> dict[str, Tensor]:
        """Update the critics, the actor, the temperature and the target critics once. Returns what to log.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        limit = self.config.max_grad_norm
        loss, value = self.critic_loss(batch)
        backward_and_step(loss, self.critic_optimizer, limit, name="critic_loss")
        actor_loss, log_prob = self.actor_loss(batch.observation)
        backward_and_step(actor_loss, self.actor_optimizer, limit, name="actor_loss")
        backward_and_step(self.temperature_loss(log_prob), self.temperature_optimizer, limit, name="temperature_loss")
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target_critics.parameters()), list(self.critics.parameters()), self.config.tau
            )
        logs = {"critic_loss": loss, "actor_loss": actor_loss, "value": value, "entropy": -log_prob.mean()}
        return {name: number.detach() for name, number in logs.items()} | {
            "temperature": self.log_temperature.detach().exp()
        }

    def critic_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Return half the squared errors of both critics from the soft target (equation 5), and their mean value."""
        with torch.no_grad():
            action, log_prob = self.sample(batch.next_observation)
            following = self.target_critics(batch.next_observation, action).amin(0)
            following = following - self.log_temperature.exp() * log_prob
            target = batch.reward + self.config.discount * following * ~batch.terminal
        value = self.critics(batch.observation, batch.action)
        return (value - target).square().mean(1).sum() / 2, value.detach().mean()

    def actor_loss(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's loss at observations [b, k] (equation 9), and its actions' log-probabilities [b]."""
        action, log_prob = self.sample(observation)
        self.critics.requires_grad_(False)
        value = self.critics(observation, action).amin(0)
        self.critics.requires_grad_(True)
        return (self.log_temperature.detach().exp() * log_prob - value).mean(), log_prob.detach()

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """Return the loss of the temperature (equation 18, of its logarithm) for log-probabilities [b]."""
        return -(self.log_temperature * (log_prob + self.target_entropy)).mean()
