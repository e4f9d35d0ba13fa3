"""Regularizers against representation collapse: the variance and covariance terms of VICReg, and SIGReg.

Each maps embeddings [..., d], in which all but the last dimension are samples, to a loss and values to log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor

from vwm.core.process_group import is_distributed, rank_count
from vwm.nn.clip_draws import draw_normal_for_all_clips
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks_with_gradient


class CollapseRegularizer(ABC):
    """A regularizer against collapse."""

    @abstractmethod
    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss of embeddings [..., d], and values to log."""


class VarianceCovarianceRegularizer(CollapseRegularizer):
    """Keep the variance of each dimension above 1, and decorrelate dimensions (VICReg, arXiv 2105.04906, section 4.1).

    Statistics are those of the global batch.

    Args:
        variance_weight: weight of the hinge loss that keeps standard deviations above 1.
        covariance_weight: weight of the squared covariances.
    """

    def __init__(self, variance_weight: float = 1.0, covariance_weight: float = 0.04) -> None:
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = at_least_float32(embeddings.flatten(0, -2))
        if len(x) < 2:
            raise ValueError(f"variance and covariance need at least 2 samples, got {len(x)}: raise data.batch_size")
        x = x - mean_over_ranks_with_gradient(x.mean(dim=0))
        samples = len(x) * rank_count()
        covariance = mean_over_ranks_with_gradient(x.T @ x / len(x)) * (samples / (samples - 1))
        variances = covariance.diagonal()
        hinge = (1 - (variances + 1e-4).sqrt()).relu().mean()
        off_diagonal = (covariance.square().sum() - variances.square().sum()) / len(covariance)
        logs = {"variance_loss": hinge.detach(), "covariance_loss": off_diagonal.detach()}
        return self.variance_weight * hinge + self.covariance_weight * off_diagonal, logs


class SIGReg(CollapseRegularizer):
    """Make embeddings isotropic Gaussian: normal along random directions (LeJEPA, arXiv 2511.08544, section 4).

    The loss is the Epps-Pulley statistic between the empirical characteristic function and that of the standard normal
    distribution: N times the integral of their squared difference under a Gaussian window, averaged over random
    directions. It needs no target encoder, no stop-gradient and no schedule.

    Args:
        weight: weight of the loss.
        num_slices: number of random directions per step.
        num_points: number of frequencies in [0, max_frequency] at which the functions are compared (both are
            symmetric).
        max_frequency: largest frequency.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self, weight: float = 0.05, num_slices: int = 256, num_points: int = 9, max_frequency: float = 3.0
    ) -> None:
        if num_slices < 1 or num_points < 2 or max_frequency <= 0:
            raise ValueError(
                f"num_slices={num_slices} must be at least 1, num_points={num_points} at least 2 and "
                f"max_frequency={max_frequency} positive"
            )
        self.weight = weight
        self.num_slices = num_slices
        self.num_points = num_points
        self.max_frequency = max_frequency

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = at_least_float32(embeddings.flatten(0, -2))
        directions = draw_normal_for_all_clips((x.shape[1], self.num_slices), x.device).to(x.dtype)
        directions = _broadcast_from_rank_zero(directions)
        projections = x @ (directions / directions.norm(dim=0))
        frequencies = torch.linspace(0, self.max_frequency, self.num_points, dtype=x.dtype, device=x.device)
        angles = projections[..., None] * frequencies
        # Real and imaginary part of the empirical characteristic function, [2, slices, points].
        empirical = torch.stack((angles.cos().mean(0), angles.sin().mean(0)))
        empirical = mean_over_ranks_with_gradient(empirical)
        num_samples = len(x) * rank_count()
        normal = torch.exp(-frequencies.square() / 2)  # characteristic function of the normal, and also the window
        error = (empirical[0] - normal).square() + empirical[1].square()
        statistic = 2 * num_samples * torch.trapezoid(error * normal, frequencies).mean()
        return self.weight * statistic, {"sigreg": statistic.detach()}


def _broadcast_from_rank_zero(directions: Tensor) -> Tensor:
    """Return the directions of the first rank, because characteristic functions are averaged over ranks."""
    if is_distributed():
        dist.broadcast(directions, src=0)
    return directions
