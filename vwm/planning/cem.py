"""The cross-entropy method: fit the distribution to the best few sequences, draw again.

Rubinstein: The cross-entropy method for combinatorial and continuous optimization, 1999; in learned worlds PlaNet
(Hafner et al. 2019), V-JEPA 2-AC (Assran et al. 2025). Noise with a memory, kept elites and the shifted start of the
next plan are iCEM's (Pinneri et al. 2020).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vwm.planning.sampling_planner import SamplingPlanner


class CEM(SamplingPlanner):
    """See ``SamplingPlanner``, which explains the other arguments.

    V-JEPA 2-AC plans with ``CEM(horizon=2, samples=400, elites=10, iterations=10, momentum=0.15, max_norm=0.05,
    colour=0, keep=0, pick="mean")``.

    Args:
        horizon, samples: see ``SamplingPlanner``.
        elites: how many of the best sequences the distribution is fitted to.
        iterations, momentum, std, min_std, colour, keep, max_norm, pick, chunk: see ``SamplingPlanner``.
    """

    def __init__(
        self,
        horizon: int = 24,
        samples: int = 64,
        elites: int = 8,
        iterations: int = 3,
        momentum: float = 0.1,
        std: float = 1.5,
        min_std: float = 0.05,
        colour: float = 2.0,
        keep: int = 4,
        max_norm: float = 1.0,
        pick: Literal["best", "mean"] = "best",
        chunk: int = 512,
    ) -> None:
        super().__init__(horizon, samples, iterations, momentum, std, min_std, colour, keep, max_norm, pick, chunk)
        if not 1 <= elites <= samples:
            raise ValueError(f"elites must lie in 1..{samples} (samples), got {elites}")
        self.elites = elites

    def weights(self, costs: Tensor) -> Tensor:
        """The elites count alike, the others nothing."""
        places = costs.sort(dim=1, stable=True).indices[:, : self.elites]
        return torch.zeros_like(costs).scatter(1, places, 1 / self.elites)
