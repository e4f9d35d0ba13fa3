"""What keeps representations from becoming all alike, where no slow teacher does: VICReg's two terms, and SIGReg.

Each is called with embeddings [..., d], all but the last axis being samples, and gives a loss and what to log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


class CollapseRegularizer(ABC):
    """A regulariser against collapse."""

    @abstractmethod
    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of embeddings [..., d]: the weighted loss, and its parts."""


class VarianceCovarianceRegularizer(CollapseRegularizer):
    """Every dimension varies, and no two vary together (VICReg, arXiv 2105.04906, section 4.1).

    The sums run over the samples of one process.

    Args:
        variance: weight of the hinge that holds every deviation above 1.
        covariance: weight of the squared covariances.
    """

    def __init__(self, variance: float = 1.0, covariance: float = 0.04) -> None:
        self.variance, self.covariance = variance, covariance

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = embeddings.flatten(0, -2).float()
        if len(x) < 2:
            raise ValueError("variance and covariance need at least 2 samples: raise data.batch_size")
        x = x - x.mean(dim=0)
        matrix = x.T @ x / (len(x) - 1)
        variances = matrix.diagonal()
        hinge = (1 - (variances + 1e-4).sqrt()).relu().mean()
        spread = (matrix.square().sum() - variances.square().sum()) / len(matrix)
        logs = {"variance_loss": hinge.detach(), "covariance_loss": spread.detach()}
        return self.variance * hinge + self.covariance * spread, logs


class SIGReg(CollapseRegularizer):
    """Embeddings are distributed as a standard normal, seen from any side (LeJEPA, arXiv 2511.08544, section 4).

    Along random directions, the Epps-Pulley distance between the samples' characteristic function and the normal's:
    the mean over directions of N times the integral of their squared difference under a Gaussian window. No teacher,
    no stopped gradient and no schedule are needed beside it.

    Args:
        weight: of the loss.
        slices: random directions a step.
        points: places in [0, reach] at which the functions are compared (both are symmetric).
        reach: the largest of them.
    """

    def __init__(self, weight: float = 0.05, slices: int = 256, points: int = 9, reach: float = 3.0) -> None:
        if slices < 1 or points < 2 or reach <= 0:
            raise ValueError(f"slices={slices} must be 1 or more, points={points} 2 or more, reach={reach} above 0")
        self.weight, self.slices, self.points, self.reach = weight, slices, points, reach

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = embeddings.flatten(0, -2).float()
        directions = torch.randn(x.shape[1], self.slices, device=x.device)
        directions = _broadcast_from_rank_zero(directions)
        shown = x @ (directions / directions.norm(dim=0))
        at = torch.linspace(0, self.reach, self.points, device=x.device)
        angle = shown[..., None] * at
        waves = torch.stack((angle.cos().mean(0), angle.sin().mean(0)))  # [2, slices, points]
        samples = len(x)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            waves = all_reduce(waves) / dist.get_world_size()
            samples *= dist.get_world_size()
        normal = torch.exp(-at.square() / 2)  # the normal's characteristic function, and the window as well
        error = (waves[0] - normal).square() + waves[1].square()
        distance = 2 * samples * torch.trapezoid(error * normal, at).mean()
        return self.weight * distance, {"sigreg": distance.detach()}


def _broadcast_from_rank_zero(directions: Tensor) -> Tensor:
    """The first rank's directions: an average of characteristic functions needs equal ones."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(directions, src=0)
    return directions
