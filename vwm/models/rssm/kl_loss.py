"""How posterior and prior are drawn to each other: the choices that PlaNet and the Dreamers made.

Legend: b batch, t time, s variables, p parameters a variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vwm.models.rssm.rssm import RSSM, RSSMState, flatten_rssm_states
from vwm.models.rssm.stochastic_latents import StochasticLatent


class KLLossOutput(NamedTuple):
    """loss float []; nats float [], the mean divergence of posterior from prior, without free nats."""

    loss: Tensor
    nats: Tensor


@dataclass(frozen=True)
class KLLoss:
    """KL(posterior || prior), which trains the prior towards the posterior and the posterior towards the prior.

    Attributes:
        objective: ``"elbo"``, as it stands (PlaNet, Dreamer v1); ``"balanced"``, the prior's share is ``dynamics`` and
            the posterior's ``representation`` (DreamerV2, arXiv 2010.02193, algorithm 2: 0.8 and 0.2; with the
            prediction loss these are DreamerV3's three terms: 1 and 0.1, each with free nats of its own).
        dynamics, representation: shares of a balanced one.
        free_nats: below which the divergence costs the same, and so teaches nothing.
        free: whether that goes for each moment by itself (PlaNet, DreamerV3) or for their mean (Dreamer v1 and v2).
        scale: of the whole.
    """

    objective: Literal["elbo", "balanced"] = "balanced"
    dynamics: float = 1.0
    representation: float = 0.1
    free_nats: float = 1.0
    free: Literal["moment", "mean"] = "moment"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in ("elbo", "balanced") or self.free not in ("moment", "mean"):
            raise ValueError(
                f"objective={self.objective!r} must be 'elbo' or 'balanced' and free={self.free!r} 'moment' or 'mean'"
            )

    def __call__(self, stochastic: StochasticLatent, posterior: Tensor, prior: Tensor) -> KLLossOutput:
        """The mean over moments; parameters [..., s, p] twice."""
        kl = stochastic.divergence
        if self.objective == "elbo":
            nats = kl(posterior, prior)
            return KLLossOutput(self.scale * self._clip_free_nats(nats), nats.detach().mean())
        dynamics, representation = kl(posterior.detach(), prior), kl(posterior, prior.detach())
        loss = self.dynamics * self._clip_free_nats(dynamics) + self.representation * self._clip_free_nats(
            representation
        )
        return KLLossOutput(self.scale * loss, dynamics.detach().mean())

    def _clip_free_nats(self, nats: Tensor) -> Tensor:
        if self.free == "mean":
            return nats.mean().clamp(min=self.free_nats)
        return nats.clamp(min=self.free_nats).mean()


def latent_overshooting_loss(
    rssm: RSSM, states: RSSMState, is_first: Tensor, distance: int, divergence: KLLoss
) -> Tensor:
    """Latent overshooting (PlaNet, arXiv 1811.04551, equation 7): priors of several steps are trained too.

    From every posterior the actions that were taken are imagined, and what the prior says d steps later diverges from
    the posterior there, which is stopped: the multi-step prior learns from the informed state, not the other way.
    Distance 1 is the model's ordinary divergence, and is not counted again here.

    Args:
        rssm: the model.
        states: posteriors [b, t, ...], with the actions taken.
        is_first: bool [b, t]; a way that crosses the beginning of an episode leads nowhere and does not count.
        distance: D, the longest.
        divergence: how a divergence counts: its free nats and scale.

    Returns:
        float [], the mean over the distances 2 to D of the mean over moments (the paper has a weight for each distance,
        all equal where it uses them).

    Raises:
        ValueError: a distance below 2, or one that the sequence has no room for.
    """
    batch, length = is_first.shape
    if not 2 <= distance < length:
        raise ValueError(f"a distance of {distance} must be at least 2 and less than the sequence's length, {length}")
    count = KLLoss("elbo", free_nats=divergence.free_nats, free=divergence.free, scale=divergence.scale)
    losses = []
    stopped = states.parameters.detach()
    worlds, allowed = _truncate_time(states, length), torch.ones_like(is_first)
    for d in range(1, distance + 1):
        # Worlds that began at 0..t-1-d and have come d steps far: what they were is left behind at the end.
        worlds, allowed = _truncate_time(worlds, length - d), allowed[:, : length - d] & ~is_first[:, d:]
        action = states.action[:, d - 1 : length - 1].flatten(0, 1)
        flat = rssm.advance(flatten_rssm_states(worlds)._replace(action=action))
        worlds = RSSMState(*(part.unflatten(0, (batch, length - d)) for part in flat))
        if d >= 2 and bool(allowed.any()):
            losses.append(count(rssm.stochastic, stopped[:, d:][allowed], worlds.parameters[allowed]).loss)
    return torch.stack(losses).mean() if losses else states.parameters.sum() * 0


def _truncate_time(states: RSSMState, length: int) -> RSSMState:
    return RSSMState(*(part[:, :length] for part in states))
