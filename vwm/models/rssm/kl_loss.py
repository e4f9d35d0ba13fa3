"""KL losses between the posterior and the prior of an RSSM, in the variants of PlaNet and the Dreamers.

Dimensions: b batch, t time, s variables, p parameters per variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vwm.models.rssm.rssm import RSSM, RSSMState, flatten_rssm_states
from vwm.models.rssm.stochastic_latents import StochasticLatent


class KLLossOutput(NamedTuple):
    """KL loss and the divergence behind it.

    Attributes:
        loss: float [].
        kl_nats: float [], mean KL(posterior || prior) in nats, without free nats and scales.
    """

    loss: Tensor
    kl_nats: Tensor


@dataclass(frozen=True)
class KLLoss:
    """KL(posterior || prior), which trains the prior toward the posterior and the posterior toward the prior.

    Attributes:
        objective: ``"elbo"``: the divergence itself (PlaNet, Dreamer v1). ``"balanced"``: the sum of two terms, one
            with the posterior detached, scaled by ``dynamics_scale``, and one with the prior detached, scaled by
            ``representation_scale`` (DreamerV2, arXiv 2010.02193, algorithm 2: 0.8 and 0.2; DreamerV3: 1 and 0.1).
        dynamics_scale: Scale of the term that trains the prior.
        representation_scale: Scale of the term that trains the posterior.
        free_nats: Lower limit of the divergence; below it the loss is constant and has no gradient.
        free_nats_over: ``"time_step"`` applies the limit to each time step (PlaNet, DreamerV3), ``"mean"`` to their
            mean (Dreamer v1 and v2).
        scale: Scale of the whole loss.

    Raises:
        ValueError: An unknown ``objective`` or ``free_nats_over``.
    """

    objective: Literal["elbo", "balanced"] = "balanced"
    dynamics_scale: float = 1.0
    representation_scale: float = 0.1
    free_nats: float = 1.0
    free_nats_over: Literal["time_step", "mean"] = "time_step"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in ("elbo", "balanced"):
            raise ValueError(f"objective={self.objective!r} must be 'elbo' or 'balanced'")
        if self.free_nats_over not in ("time_step", "mean"):
            raise ValueError(f"free_nats_over={self.free_nats_over!r} must be 'time_step' or 'mean'")

    def __call__(self, stochastic: StochasticLatent, posterior: Tensor, prior: Tensor) -> KLLossOutput:
        """Return the loss, averaged over time steps, for posterior and prior parameters [..., s, p]."""
        kl = stochastic.kl_divergence
        if self.objective == "elbo":
            nats = kl(posterior, prior)
            return KLLossOutput(self.scale * self.clip_free_nats(nats), nats.detach().mean())
        dynamics = kl(posterior.detach(), prior)
        representation = kl(posterior, prior.detach())
        dynamics_loss = self.dynamics_scale * self.clip_free_nats(dynamics)
        representation_loss = self.representation_scale * self.clip_free_nats(representation)
        return KLLossOutput(self.scale * (dynamics_loss + representation_loss), dynamics.detach().mean())

    def clip_free_nats(self, nats: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean of divergences [...] with their lower limit; only of those where bool ``valid`` [...] is set.

        It is finite also where none is.
        """
        if self.free_nats_over == "time_step":
            return _masked_mean(nats.clamp(min=self.free_nats), valid)
        return _masked_mean(nats, valid).clamp(min=self.free_nats)


def latent_overshooting_loss(
    rssm: RSSM, states: RSSMState, is_first: Tensor, max_distance: int, kl_loss: KLLoss
) -> Tensor:
    """Return the latent overshooting loss, which also trains priors several steps ahead.

    Source: PlaNet (arXiv 1811.04551), equation 7. From every posterior, the recorded actions are imagined for d steps;
    the loss is the divergence between the detached posterior there and the imagined prior, so that only the multi-step
    prior is trained. Distance 1 is the ordinary KL loss and is not included.

    Args:
        rssm: The model.
        states: Posterior states [b, t, ...] with the recorded actions.
        is_first: bool [b, t], first steps of episodes. Rollouts that cross one are excluded.
        max_distance: D, the largest distance in steps.
        kl_loss: Source of the free nats and the scale.

    Returns:
        float [], the mean over the distances 2 to D of the mean over time steps. (The paper has one weight per distance
        and sets all of them equal.)

    Raises:
        ValueError: ``max_distance`` is below 2 or not below the sequence length.
    """
    batch, length = is_first.shape
    if not 2 <= max_distance < length:
        raise ValueError(f"max_distance={max_distance} must be at least 2 and less than the sequence length {length}")
    losses, counted = [], []
    targets = states.parameters.detach()
    rollouts = _truncate_time(states, length)
    valid = torch.ones_like(is_first)
    for d in range(1, max_distance + 1):
        # Rollouts that started at 0..t-1-d, now d steps ahead; the last one would leave the sequence and is dropped.
        rollouts = _truncate_time(rollouts, length - d)
        valid = valid[:, : length - d] & ~is_first[:, d:]
        action = states.action[:, d - 1 : length - 1].flatten(0, 1)
        flat = rssm.prior_step(flatten_rssm_states(rollouts)._replace(action=action))
        rollouts = RSSMState(*(part.unflatten(0, (batch, length - d)) for part in flat))
        if d >= 2:
            nats = rssm.stochastic.kl_divergence(targets[:, d:], rollouts.parameters)
            losses.append(kl_loss.scale * kl_loss.clip_free_nats(nats, valid))
            counted.append(valid.any())
    weights = torch.stack(counted).to(losses[0].dtype)
    return (torch.stack(losses) * weights).sum() / weights.sum().clamp(min=1)


def _truncate_time(states: RSSMState, length: int) -> RSSMState:
    return RSSMState(*(part[:, :length] for part in states))


def _masked_mean(numbers: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return numbers.mean()
    return numbers.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)
