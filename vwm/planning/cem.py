"""The cross-entropy method: draw sequences, fit the distribution to the best few, repeat.

Rubinstein: The cross-entropy method for combinatorial and continuous optimization, 1999. In learned worlds: PlaNet
(Hafner et al. 2019) and V-JEPA 2-AC (Assran et al. 2025). Colored noise, kept elites and the shifted start of the next
plan are from iCEM (Pinneri et al. 2020).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vwm.planning.sampling_planner import SamplingPlanner


class CEM(SamplingPlanner):
    """Plan by the cross-entropy method; ``SamplingPlanner`` explains the other arguments.

    V-JEPA 2-AC plans with ``CEM(horizon=2, samples=400, elites=10, iterations=10, momentum=0.15, action_bound=0.05,
    noise_exponent=0, keep_elites=0, selection="mean")``.

    Args:
        horizon, samples: see ``SamplingPlanner``.
        elites: number of best sequences that the distribution is fitted to.
        iterations, momentum, init_std, min_std, noise_exponent, keep_elites, action_bound, selection, max_batch_size:
            see ``SamplingPlanner``.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        horizon: int = 24,
        samples: int = 64,
        elites: int = 8,
        iterations: int = 3,
        momentum: float = 0.1,
        init_std: float = 1.5,
        min_std: float = 0.05,
        noise_exponent: float = 2.0,
        keep_elites: int = 4,
        action_bound: float = 1.0,
        selection: Literal["best", "mean"] = "best",
        max_batch_size: int = 512,
    ) -> None:
        super().__init__(
            horizon=horizon,
            samples=samples,
            iterations=iterations,
            momentum=momentum,
            init_std=init_std,
            min_std=min_std,
            noise_exponent=noise_exponent,
            keep_elites=keep_elites,
            action_bound=action_bound,
            selection=selection,
            max_batch_size=max_batch_size,
        )
        if not 1 <= elites <= samples:
            raise ValueError(f"elites must lie in 1..{samples} (samples), got {elites}")
        self.elites = elites

    def sequence_weights(self, costs: Tensor) -> Tensor:
        """Give all elites the same weight, and the other sequences none."""
        indices = costs.sort(dim=1, stable=True).indices[:, : self.elites]
        return torch.zeros_like(costs).scatter(1, indices, 1 / self.elites)
