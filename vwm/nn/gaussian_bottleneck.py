"""A Gaussian bottleneck (VAE, arXiv 1312.6114): a few numbers, at a cost per nat, instead of one of several codes.

It is the continuous alternative to ``Quantizer``. Its numbers are given in units in which the data nearly fill [-1, 1],
as actions are, so that whoever chooses them, a player or a planner, knows the range that the data have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.action_parts import MAX_PART_SIZE
from vwm.nn.clip_draws import draw_normal_like
from vwm.nn.context_parallel import ContextGroup
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import join_ranks

LEVELS = (0.01, 0.5, 0.99)
"""Percentiles of the data: what -1 stands for, the position at rest, and what 1 stands for."""
RECENT = 1024
"""Number of the last means in training of which the percentiles are taken."""
MIN_HALF_RANGE = 0.05
"""In standard deviations of the prior: the noise of a dimension that carries no information is not amplified more."""


class GaussianOutput(NamedTuple):
    """The output of a bottleneck.

    Attributes:
        codes: [..., d], of a sample in training, else of the mean.
        actions: float [..., a] in [-1, 1], the mean, scaled by the percentiles of the data and clipped; no gradient.
        loss: weighted divergence.
    """

    codes: Tensor
    actions: Tensor
    loss: Tensor


class GaussianBottleneck(nn.Module):
    """Project to the mean and variance of a normal distribution, sample, and project back.

    Args:
        width: d, width of inputs and outputs.
        dims: a, dimensions of the distribution.
        kl_weight: weight of the KL divergence to the standard normal distribution, in nats, summed over the dimensions
            (AdaWorld, arXiv 2503.18938: 2e-4 with a = 32).

    Attributes:
        recent: float [1024, a], the last means in training; before the first, numbers from -1 to 1.
        percentiles: float [3, a], theirs at ``LEVELS``.
        context_group: processes that have the same vectors, which count once; None where all differ.

    Raises:
        ValueError: a value out of range.
    """

    recent: Tensor
    percentiles: Tensor
    context_group: ContextGroup | None = None

    def __init__(self, width: int, dims: int, kl_weight: float) -> None:
        super().__init__()
        if not 1 <= dims <= MAX_PART_SIZE or not kl_weight > 0:
            raise ValueError(
                f"action_dims must lie in 1..{MAX_PART_SIZE} and kl_weight be above 0, got {dims} and {kl_weight}"
            )
        self.size = dims
        self.kl_weight = kl_weight
        self.moments = nn.Linear(width, 2 * dims)
        self.embed = nn.Linear(dims, width)
        self.register_buffer("recent", torch.linspace(-1, 1, RECENT)[:, None].repeat(1, dims))
        self.register_buffer("percentiles", torch.tensor([-1.0, 0.0, 1.0])[:, None].repeat(1, dims))

    def forward(self, x: Tensor) -> GaussianOutput:
        """[..., d] -> codes, actions, and loss. The moments are at least float32."""
        mean, log_variance = at_least_float32(self.moments(x)).chunk(2, dim=-1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        z = mean
        if self.training:
            z = mean + (0.5 * log_variance).exp() * draw_normal_like(mean)
            self._update_percentiles(mean)
        return GaussianOutput(self.embed(z.to(x.dtype)), self.to_actions(mean), self.kl_weight * divergence)

    @torch.no_grad()
    def to_actions(self, mean: Tensor) -> Tensor:
        """Scale means [..., a] so that the outer percentiles of the data become -1 and 1, and clip them."""
        low, _, high = self.percentiles
        half = ((high - low) / 2).clamp(min=MIN_HALF_RANGE)
        return ((mean - (high + low) / 2) / half).clamp(-1, 1)

    @property
    def rest(self) -> tuple[float, ...]:
        """The action of the data's medians."""
        return tuple(self.to_actions(self.percentiles[1]).tolist())

    @torch.no_grad()
    def _update_percentiles(self, mean: Tensor) -> None:
        """Replace the oldest of the recent means, and take the percentiles of all."""
        is_copy = self.context_group is not None and self.context_group.rank > 0
        new = join_ranks(mean.flatten(0, -2)[: 0 if is_copy else None][-RECENT:])[-RECENT:]
        self.recent.copy_(torch.cat((self.recent[len(new) :], new.to(self.recent.dtype))))
        recent = at_least_float32(self.recent)
        levels = torch.tensor(LEVELS, dtype=recent.dtype, device=recent.device)
        self.percentiles.copy_(torch.quantile(recent, levels, dim=0))
