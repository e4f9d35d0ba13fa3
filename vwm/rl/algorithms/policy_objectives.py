"""Objectives of a policy on imagined trajectories: by the size of its advantages, or only by their signs.

Legend: h steps of the horizon, n trajectories. Time comes first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vwm.rl.algorithms.actor import ActionDistribution
from vwm.rl.algorithms.actor_critic import ActorCritic, ActorCriticLosses, ImaginedTrajectory
from vwm.rl.lambda_returns import cumulative_discount, lambda_returns


class PolicyObjective(ABC):
    """The losses of a policy on imagined trajectories.

    Attributes:
        beta: weight of the KL divergence from the cloned policy; above 0 there must be one.
    """

    beta: float

    @abstractmethod
    def losses(
        self,
        actor_critic: ActorCritic,
        trajectory: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """Compute the losses of actor and critic.

        Args:
            actor_critic: actor and critic.
            trajectory: the imagined trajectories.
            policy: action distributions of every time step but the last, [h, n], with gradients.
            prior: those of the frozen cloned policy, or None.
        """


class PMPOObjective(PolicyObjective):
    """Preference optimization (arXiv 2410.04166) as in Dreamer 4 (arXiv 2509.24527, section 3.3).

    Only the sign of an advantage counts, so that the scale of rewards does not matter: with D+ the time steps whose
    λ-return is at least the critic's value, and D- the others,

        (1 - alpha) / |D-| sum over D- of log p(a) - alpha / |D+| sum over D+ of log p(a)
            + beta / N sum of KL(p || prior)

    over all time steps before the end of the episode. The KL is the reverse one: the policy stays within the prior's
    support and need not cover all of it.

    Args:
        alpha: weight of D+; 0.5 gives both sets equal weight, whatever their sizes.
        beta: weight of the KL.

    Raises:
        ValueError: a weight is out of range.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.3) -> None:
        if not 0 <= alpha <= 1 or beta < 0:
            raise ValueError(f"alpha must lie in 0..1 and beta be 0 or more, got {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta

    def losses(
        self,
        actor_critic: ActorCritic,
        trajectory: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """See ``PolicyObjective``."""
        with torch.no_grad():
            value, bootstrap, returns = actor_critic.estimate_returns(trajectory)
            weights = (cumulative_discount((trajectory.discount > 0).to(returns.dtype)) * trajectory.alive)[:-1]
            better = (returns >= bootstrap[:-1]).to(returns.dtype)
        log_prob, entropy = policy.log_prob(trajectory.action), policy.entropy()
        better_log_prob, worse_log_prob = (
            weighted_mean(log_prob, weights * better),
            weighted_mean(log_prob, weights * (1 - better)),
        )
        actor_loss = (1 - self.alpha) * worse_log_prob - self.alpha * better_log_prob
        logs = {}
        if prior is not None:
            logs["prior_kl"] = weighted_mean(policy.kl_divergence(prior), weights)
            actor_loss = actor_loss + self.beta * logs["prior_kl"]
        critic_loss = weighted_mean(actor_critic.critic_loss(trajectory.features[:-1], returns), weights)
        logs |= {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": weighted_mean(entropy, weights),
            "better": weighted_mean(better, weights),
            "imagined_return": weighted_mean(returns, weights),
            "value": weighted_mean(value[:-1], weights),
        }
        logs = {name: value.detach() for name, value in logs.items()}
        return ActorCriticLosses(actor_loss, critic_loss, returns, logs)


class ReinforceObjective(PolicyObjective):
    """Dreamer's objective: normalized advantages and an entropy bonus; see ``ActorCritic.losses``.

    IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399) use it in worlds of images.

    Args:
        beta: weight of KL(policy || prior), for cloned policies.

    Raises:
        ValueError: beta is negative.
    """

    def __init__(self, beta: float = 0.0) -> None:
        if beta < 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        self.beta = beta

    def losses(
        self,
        actor_critic: ActorCritic,
        trajectory: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """See ``PolicyObjective``."""
        losses = actor_critic.losses(trajectory, policy)
        if prior is None:
            return losses
        weights = (cumulative_discount((trajectory.discount > 0).to(trajectory.discount.dtype)) * trajectory.alive)[:-1]
        prior_kl = weighted_mean(policy.kl_divergence(prior), weights)
        logs = {**losses.logs, "prior_kl": prior_kl.detach()}
        return losses._replace(actor_loss=losses.actor_loss + self.beta * prior_kl, logs=logs)


class AdvantageObjective(PolicyObjective):
    """The plain advantage actor-critic of IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399, appendix).

    Advantages are not normalized and later time steps not weighted less; with λ-returns R and the critic's values V,
    averaged over the time steps before the end of the episode,

        -log p(a) (R - V) - entropy_scale H(p) + value_scale (V - R)²

    Args:
        sign_rewards: count only the signs of rewards.
        value_scale: weight of the critic's loss.
    """

    beta = 0.0

    def __init__(self, sign_rewards: bool = True, value_scale: float = 1.0) -> None:
        self.sign_rewards = sign_rewards
        self.value_scale = value_scale

    def losses(
        self,
        actor_critic: ActorCritic,
        trajectory: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """See ``PolicyObjective``."""
        value = actor_critic.value(trajectory.features)
        reward = trajectory.reward.sign() if self.sign_rewards else trajectory.reward
        returns = lambda_returns(reward, value.detach(), trajectory.discount, actor_critic.lam)
        before_end = trajectory.alive.expand_as(value)[:-1]
        advantage = returns - value[:-1].detach()
        entropy = weighted_mean(policy.entropy(), before_end)
        gain = weighted_mean(policy.log_prob(trajectory.action) * advantage, before_end)
        actor_loss = -gain - actor_critic.actor_config.entropy_scale * entropy
        critic_loss = self.value_scale * weighted_mean((value[:-1] - returns).square(), before_end)
        logs = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": entropy,
            "imagined_return": weighted_mean(returns, before_end),
            "imagined_reward": weighted_mean(reward[1:], before_end),
            "value": weighted_mean(value[:-1], before_end),
        }
        logs = {name: number.detach() for name, number in logs.items()}
        return ActorCriticLosses(actor_loss, critic_loss, returns, logs)


def weighted_mean(numbers: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean, a scalar; 0 where all weights are 0."""
    return (numbers * weights).sum() / weights.sum().clamp(min=1e-8)
