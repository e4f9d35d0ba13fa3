"""By what a policy improves on imagined ways: how much better an action was than expected, or only whether it was.

Legend: h steps of the horizon, n ways. Time comes first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vwm.rl.algorithms.actor import ActionDistribution
from vwm.rl.algorithms.actor_critic import ActorCritic, ActorCriticLosses, ImaginedTrajectory
from vwm.rl.lambda_returns import cumulative_discount


class PolicyObjective(ABC):
    """What to learn from ways.

    Attributes:
        beta: weight of the divergence from the cloned policy; above 0 there must be one.
    """

    beta: float

    @abstractmethod
    def losses(
        self,
        behaviour: ActorCritic,
        way: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """The losses of actor and critic.

        Args:
            behaviour: the two, of which the critic judges.
            way: what was imagined.
            policy: of all moments but the last, [h, n], with gradients.
            prior: the cloned policy there, frozen.
        """


class PMPOObjective(PolicyObjective):
    """Preference optimisation (arXiv 2410.04166) as in Dreamer 4 (arXiv 2509.24527, section 3.3).

    Of an advantage only the sign counts, so that no scale of rewards matters: with D+ the moments whose lambda return
    is at least what the critic expected, and D- the others,

        (1 - alpha) / |D-| sum over D- of log p(a) - alpha / |D+| sum over D+ of log p(a)
            + beta / N sum of KL(p || prior)

    over all moments that come before the world's end. The KL is the reverse one: the policy keeps to what the prior
    does, and need not do all of it.

    Args:
        alpha: weight of D+; 0.5 has both count alike, however many they are.
        beta: weight of the KL.

    Raises:
        ValueError: a weight makes no sense.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.3) -> None:
        if not 0 <= alpha <= 1 or beta < 0:
            raise ValueError(f"alpha must lie in 0..1 and beta be 0 or more, got {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta

    def losses(
        self,
        behaviour: ActorCritic,
        way: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """See ``PolicyObjective``."""
        with torch.no_grad():
            value, bootstrap, returns = behaviour.estimates(way)
            counts = (cumulative_discount((way.live > 0).to(returns.dtype)) * way.begins)[:-1]
            better = (returns >= bootstrap[:-1]).to(returns.dtype)
        log_prob, entropy = policy.log_prob(way.action), policy.entropy()
        up, down = weighted_mean(log_prob, counts * better), weighted_mean(log_prob, counts * (1 - better))
        actor = (1 - self.alpha) * down - self.alpha * up
        logs = {}
        if prior is not None:
            logs["divergence"] = weighted_mean(policy.divergence(prior), counts)
            actor = actor + self.beta * logs["divergence"]
        critic = weighted_mean(behaviour.critic_loss(way.features[:-1], returns), counts)
        logs |= {
            "actor_loss": actor,
            "critic_loss": critic,
            "entropy": weighted_mean(entropy, counts),
            "better": weighted_mean(better, counts),
            "imagined_return": weighted_mean(returns, counts),
            "value": weighted_mean(value[:-1], counts),
        }
        return ActorCriticLosses(actor, critic, returns, {name: number.detach() for name, number in logs.items()})


class ReinforceObjective(PolicyObjective):
    """Dreamer's: advantages in units of the returns' range, and a bonus for entropy; see ``ActorCritic.losses``.

    IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399) learn so in worlds of pictures.

    Args:
        beta: weight of KL(policy || prior), for policies that were cloned.

    Raises:
        ValueError: beta is negative.
    """

    def __init__(self, beta: float = 0.0) -> None:
        if beta < 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        self.beta = beta

    def losses(
        self,
        behaviour: ActorCritic,
        way: ImaginedTrajectory,
        policy: ActionDistribution,
        prior: ActionDistribution | None,
    ) -> ActorCriticLosses:
        """See ``PolicyObjective``."""
        learnt = behaviour.losses(way, policy)
        if prior is None:
            return learnt
        counts = (cumulative_discount((way.live > 0).to(way.live.dtype)) * way.begins)[:-1]
        apart = weighted_mean(policy.divergence(prior), counts)
        logs = {**learnt.logs, "divergence": apart.detach()}
        return learnt._replace(actor=learnt.actor + self.beta * apart, logs=logs)


def weighted_mean(numbers: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean, a scalar; 0 where nothing has weight."""
    return (numbers * weights).sum() / weights.sum().clamp(min=1e-8)
