"""The cross-entropy method: draw sequences, fit the distribution to the best few, repeat.

Rubinstein: The cross-entropy method for combinatorial and continuous optimization, 1999. In learned worlds: PlaNet
(Hafner et al. 2019) and V-JEPA 2-AC (Assran et al. 2025). Colored noise, kept elites and the shifted start of the next
plan are from iCEM (Pinneri et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.planning.sampling_planner import SamplingPlanner


@dataclass(frozen=True, kw_only=True)
class CEM(SamplingPlanner):
    """Plan by the cross-entropy method.

    V-JEPA 2-AC plans with ``CEM(horizon=2, samples=400, elites=10, iterations=10, momentum=0.15, action_bound=0.05,
    noise_exponent=0, keep_elites=0, selection="mean")``.

    Attributes:
        elites: number of best sequences that the distribution is fitted to.
        horizon, samples, iterations, momentum, init_std, min_std, noise_exponent, keep_elites, action_bound, selection,
            max_batch_size: see ``SamplingPlanner``.

    Raises:
        ValueError: a value is out of range.
    """

    elites: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.elites <= self.samples:
            raise ValueError(f"elites must lie in 1..{self.samples} (samples), got {self.elites}")

    def sequence_weights(self, costs: Tensor) -> Tensor:
        """Give all elites the same weight, and the other sequences none."""
        indices = costs.sort(dim=1, stable=True).indices[:, : self.elites]
        return torch.zeros_like(costs).scatter(1, indices, 1 / self.elites)
