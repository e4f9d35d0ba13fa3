"""How a policy is improved along ways that a world imagines: Dreamer v1, v2 and v3 as choices over shared parts.

Legend: h steps of the horizon, n ways, d width of features, a dimensions of an action. Time comes first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace
from vwm.nn.dense_layers import ActivationType, NormType
from vwm.nn.prediction_heads import PredictionHead
from vwm.rl.algorithms.actor import ActionDistribution, Actor, ContinuousDistributionKind
from vwm.rl.lambda_returns import cumulative_discount, lambda_returns


class ImaginedTrajectory(NamedTuple):
    """What was imagined.

    Attributes:
        features: [h + 1, n, d].
        action: [h, n] or [h, n, a], taken at all moments but the last.
        reward: [h + 1, n], on arriving; the first is not used.
        live: [h + 1, n], the discount times the probability that the world goes on at this moment.
        begins: [n], 1 where the world goes on at the first moment, else 0: a way from there counts nothing. Where ends
            are certain rather than probable, [h + 1, n]: 1 until the world ends.
    """

    features: Tensor
    action: Tensor
    reward: Tensor
    live: Tensor
    begins: Tensor


@dataclass(frozen=True)
class ActorConfig:
    """See ``vwm.rl.algorithms.actor.Actor``, and what it learns by.

    Attributes:
        gradient: ``"reinforce"`` (v3; v2 for discrete actions) or ``"dynamics"``, through the world (v1; v2 for
            continuous actions).
        entropy: how much an undecided policy is worth, in units of the return.
        width, layers, norm, activation, continuous, unimix, min_std, init_std: of the network.
    """

    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    entropy: float = 3e-4
    continuous: ContinuousDistributionKind = "bounded_normal"
    width: int = 256
    layers: int = 3
    norm: NormType = "rms"
    activation: ActivationType = "silu"
    unimix: float = 0.01
    min_std: float = 0.1
    init_std: float = 5.0


@dataclass(frozen=True)
class CriticConfig:
    """The value head, and the slow copy of it.

    Attributes:
        says: see ``vwm.nn.prediction_heads.PredictionHead``.
        slow: what a slowly moving copy is for: ``"regulariser"``, the critic is also drawn to what the copy says
            (v3); ``"target"``, returns are bootstrapped from the copy (v2); ``"none"`` (v1).
        rate: share by which the copy moves, every ``every`` updates.
        every: 1 with a small rate is an average, 100 with rate 1 a hard copy.
        width, layers, norm, activation: of the network.
    """

    says: Literal["normal", "two_hot"] = "two_hot"
    slow: Literal["regulariser", "target", "none"] = "regulariser"
    rate: float = 0.02
    every: int = 1
    width: int = 256
    layers: int = 3
    norm: NormType = "rms"
    activation: ActivationType = "silu"


class ActorCriticLosses(NamedTuple):
    """actor, critic: losses []; returns: [h, n], of all moments but the last; logs: numbers."""

    actor: Tensor
    critic: Tensor
    returns: Tensor
    logs: dict[str, Tensor]


class ActorCritic(nn.Module):
    """Actor, critic and their losses.

    Args:
        inputs: d.
        actions: what is to be done.
        actor, critic: see there.
        trace: lambda of the returns.
        normalise: divide returns by the range between their 5th and 95th percentile, where it is above 1 (v3).
    """

    RETURN_RANGE_RATE = 0.01

    range_low: Tensor
    range_high: Tensor
    range_weight: Tensor
    updates: Tensor

    def __init__(
        self,
        inputs: int,
        actions: ActionSpace,
        actor: ActorConfig,
        critic: CriticConfig,
        trace: float = 0.95,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if actor.gradient == "dynamics" and actions.kind == "discrete":
            raise ValueError("no gradient flows through a choice: discrete actions want actor.gradient='reinforce'")
        if not 0 <= trace <= 1:
            raise ValueError(f"trace must lie in 0..1, got {trace}")
        a, c = actor, critic
        self.actor: nn.Module = Actor(
            inputs, actions, a.continuous, a.width, a.layers, a.norm, a.activation, a.unimix, a.min_std, a.init_std
        )
        self.critic = PredictionHead(inputs, c.width, c.layers, c.says, c.norm, c.activation)
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_config = actor
        self.critic_config = critic
        self.trace = trace
        self.normalise = normalise
        for name in ("range_low", "range_high", "range_weight"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def losses(self, way: ImaginedTrajectory, policy: ActionDistribution) -> ActorCriticLosses:
        """What actor and critic learn from imagined ways.

        Args:
            way: with gradients from rewards and features to the actions where the actor learns through the world.
            policy: of all moments but the last, [h, n].
        """
        config = self.actor_config
        through = config.gradient == "dynamics"
        with torch.set_grad_enabled(through):
            value, bootstrap, returns = self.estimates(way)
            weight = (cumulative_discount(way.live) * way.begins)[:-1].detach()
            scale = self._range(returns.detach()) if self.normalise else 1.0
        entropy = policy.entropy()
        if through:
            worth = returns / scale
        else:
            advantage = (returns - bootstrap[:-1]) / scale
            worth = policy.log_prob(way.action) * advantage
        actor = -(weight * (worth + config.entropy * entropy)).mean()
        # Through the world, features lead back to the actor, which the critic's loss must not move.
        features = way.features[:-1].detach() if through else way.features[:-1]
        critic = (weight * self.critic_loss(features, returns.detach())).mean()
        logs = {
            "actor_loss": actor,
            "critic_loss": critic,
            "entropy": entropy.mean(),
            "imagined_return": returns.mean(),
            "imagined_reward": way.reward[1:].mean(),
            "value": value.mean(),
        }
        return ActorCriticLosses(
            actor, critic, returns.detach(), {name: number.detach() for name, number in logs.items()}
        )

    def estimates(self, way: ImaginedTrajectory) -> tuple[Tensor, Tensor, Tensor]:
        """What ways are worth.

        Returns:
            The critic's word for all moments, [h + 1, n]; the word that returns are made of, its own or the slow
            copy's, likewise; and lambda returns of all moments but the last, [h, n].
        """
        value = self.value(way.features)
        bootstrap = self.slow.mean(self.slow(way.features)) if self.critic_config.slow == "target" else value
        return value, bootstrap, lambda_returns(way.reward, bootstrap, way.live, self.trace)

    def critic_loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """Of the critic's word for moments [..., d], whose returns [...] are known: [...]."""
        said = self.critic(features)
        loss = self.critic.loss(said, returns)
        if self.critic_config.slow == "regulariser":
            with torch.no_grad():
                slow = self.slow.mean(self.slow(features))
            loss = loss + self.critic.loss(said, slow)
        return loss

    def value(self, features: Tensor) -> Tensor:
        """[..., d] -> [...]."""
        return self.critic.mean(self.critic(features))

    @torch.no_grad()
    def follow(self) -> None:
        """After every update: move the slow copy."""
        self.updates += 1
        config = self.critic_config
        if config.slow != "none" and int(self.updates) % config.every == 0:
            for slow, fast in zip(self.slow.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, config.rate)

    @torch.no_grad()
    def _range(self, returns: Tensor) -> Tensor:
        """The range of returns, averaged over updates; never below 1, so that noise is not blown up."""
        if self.training:
            ends = torch.quantile(
                _subsample(returns.flatten().float()), torch.tensor([0.05, 0.95], device=returns.device)
            )
            ends = ends.to(self.range_low.dtype)
            self.range_low.lerp_(ends[0], self.RETURN_RANGE_RATE)
            self.range_high.lerp_(ends[1], self.RETURN_RANGE_RATE)
            self.range_weight.lerp_(torch.ones_like(self.range_weight), self.RETURN_RANGE_RATE)
        weight = self.range_weight.clamp(min=1e-8)
        return ((self.range_high - self.range_low) / weight).clamp(min=1.0)


def _subsample(numbers: Tensor, most: int = 1 << 24) -> Tensor:
    """All, or evenly spaced ones: ``torch.quantile`` takes no more."""
    return numbers if len(numbers) <= most else numbers[:: -(-len(numbers) // most)]
