"""Actor-critic learning on imagined trajectories; Dreamer v1, v2 and v3 are choices of its settings.

Legend: h steps of the horizon, n trajectories, d width of features, a dimensions of an action. Time comes first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace
from vwm.nn.dense_layers import ActivationType, NormType
from vwm.nn.percentiles import percentiles
from vwm.nn.prediction_heads import PredictionHead
from vwm.rl.algorithms.actor import ActionDistribution, Actor, ActorConfig
from vwm.rl.lambda_returns import cumulative_discount, lambda_returns


class ImaginedTrajectory(NamedTuple):
    """A batch of imagined trajectories.

    Attributes:
        features: [h + 1, n, d].
        action: [h, n] or [h, n, a], taken at every time step but the last.
        reward: [h + 1, n], received on arrival; the first is not used.
        discount: [h + 1, n], discount factor times the probability that the episode continues at this time step.
        alive: [n], 1 where the episode continues at the first time step, else 0: such a trajectory has no weight. Where
            ends are certain instead of probable, [h + 1, n]: 1 until the episode ends.
    """

    features: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    alive: Tensor


@dataclass(frozen=True)
class CriticConfig:
    """The value head, and its target network.

    Attributes:
        distribution: see ``vwm.nn.prediction_heads.PredictionHead``.
        target_network: use of a slowly updated copy: ``"regularizer"``, the critic is also trained toward the copy's
            predictions (v3); ``"target"``, returns are bootstrapped from the copy (v2); ``"none"`` (v1).
        target_rate: fraction by which the copy moves, every ``target_every`` updates.
        target_every: 1 with a small rate is an exponential moving average, 100 with rate 1 a hard copy.
        width, layers, norm, activation: of the network.
    """

    distribution: Literal["normal", "two_hot"] = "two_hot"
    target_network: Literal["regularizer", "target", "none"] = "regularizer"
    target_rate: float = 0.02
    target_every: int = 1
    width: int = 256
    layers: int = 3
    norm: NormType = "rms"
    activation: ActivationType = "silu"


class ActorCriticLosses(NamedTuple):
    """actor_loss, critic_loss: []; returns: [h, n], of every time step but the last; logs: metrics."""

    actor_loss: Tensor
    critic_loss: Tensor
    returns: Tensor
    logs: dict[str, Tensor]


class ActorCritic(nn.Module):
    """Actor, critic and their losses.

    Args:
        input_size: d.
        actions: the action space.
        actor, critic: see ``ActorConfig`` and ``CriticConfig``.
        lam: λ of the returns.
        normalize_returns: divide returns by the range between their 5th and 95th percentile, where it is above 1 (v3).

    Raises:
        ValueError: ``gradient="dynamics"`` with discrete actions, or λ outside 0..1.
    """

    RETURN_RANGE_RATE = 0.01

    range_low: Tensor
    range_high: Tensor
    range_weight: Tensor
    updates: Tensor

    def __init__(
        self,
        input_size: int,
        actions: ActionSpace,
        actor: ActorConfig,
        critic: CriticConfig,
        lam: float = 0.95,
        normalize_returns: bool = True,
    ) -> None:
        super().__init__()
        if actor.gradient == "dynamics" and actions.kind == "discrete":
            raise ValueError("discrete actions have no gradient through the dynamics: set actor.gradient='reinforce'")
        if not 0 <= lam <= 1:
            raise ValueError(f"lam must lie in 0..1, got {lam}")
        self.actor: nn.Module = Actor(input_size, actions, actor)
        self.critic = PredictionHead(
            input_size,
            width=critic.width,
            layers=critic.layers,
            distribution=critic.distribution,
            norm=critic.norm,
            activation=critic.activation,
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_config = actor
        self.critic_config = critic
        self.lam = lam
        self.normalize_returns = normalize_returns
        for name in ("range_low", "range_high", "range_weight"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def losses(self, trajectory: ImaginedTrajectory, policy: ActionDistribution) -> ActorCriticLosses:
        """Compute the losses of actor and critic.

        Args:
            trajectory: with gradients from rewards and features to the actions where the actor learns through the
                dynamics.
            policy: action distributions of every time step but the last, [h, n].
        """
        config = self.actor_config
        through_dynamics = config.gradient == "dynamics"
        with torch.set_grad_enabled(through_dynamics):
            value, bootstrap, returns = self.estimate_returns(trajectory)
            weight = (cumulative_discount(trajectory.discount) * trajectory.alive)[:-1].detach()
            scale = self._return_scale(returns.detach()) if self.normalize_returns else 1.0
        entropy = policy.entropy()
        if through_dynamics:
            gain = returns / scale
        else:
            advantage = (returns - bootstrap[:-1]) / scale
            gain = policy.log_prob(trajectory.action) * advantage
        actor_loss = -(weight * (gain + config.entropy_scale * entropy)).mean()
        # Through the dynamics, features depend on the actor, which the critic's loss must not change.
        features = trajectory.features[:-1].detach() if through_dynamics else trajectory.features[:-1]
        critic_loss = (weight * self.critic_loss(features, returns.detach())).mean()
        logs = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": entropy.mean(),
            "imagined_return": returns.mean(),
            "imagined_reward": trajectory.reward[1:].mean(),
            "value": value.mean(),
        }
        logs = {name: value.detach() for name, value in logs.items()}
        return ActorCriticLosses(actor_loss, critic_loss, returns.detach(), logs)

    def estimate_returns(self, trajectory: ImaginedTrajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate values and returns.

        Returns:
            The critic's values of all time steps, [h + 1, n]; the values that returns are bootstrapped from, its own or
            the target network's, likewise; and the λ-returns of every time step but the last, [h, n].
        """
        value = self.value(trajectory.features)
        bootstrap = value
        if self.critic_config.target_network == "target":
            bootstrap = self.target_critic.mean(self.target_critic(trajectory.features))
        return value, bootstrap, lambda_returns(trajectory.reward, bootstrap, trajectory.discount, self.lam)

    def critic_loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """Return the critic's loss at features [..., d], given their returns [...]: [...]."""
        outputs = self.critic(features)
        loss = self.critic.loss(outputs, returns)
        if self.critic_config.target_network == "regularizer":
            with torch.no_grad():
                target = self.target_critic.mean(self.target_critic(features))
            loss = loss + self.critic.loss(outputs, target)
        return loss

    def value(self, features: Tensor) -> Tensor:
        """Return the critic's values [...] of features [..., d]."""
        return self.critic.mean(self.critic(features))

    @torch.no_grad()
    def update_target(self) -> None:
        """Update the target network; called after every update."""
        self.updates += 1
        config = self.critic_config
        if config.target_network == "none":
            return
        rate: Tensor | float = config.target_rate
        if config.target_every > 1:  # decided on the device, so that nothing waits for it
            rate = torch.where(self.updates % config.target_every == 0, config.target_rate, 0.0)
        for target, online in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(online, rate.to(target.dtype) if isinstance(rate, Tensor) else rate)

    @torch.no_grad()
    def _return_scale(self, returns: Tensor) -> Tensor:
        """Return the range of returns, averaged over updates; at least 1, so that noise is not amplified."""
        if self.training:
            low, high = percentiles(returns.float(), 0.05, 0.95).to(self.range_low.dtype)
            self.range_low.lerp_(low, self.RETURN_RANGE_RATE)
            self.range_high.lerp_(high, self.RETURN_RANGE_RATE)
            self.range_weight.lerp_(torch.ones_like(self.range_weight), self.RETURN_RANGE_RATE)
        weight = self.range_weight.clamp(min=1e-8)
        return ((self.range_high - self.range_low) / weight).clamp(min=1.0)
