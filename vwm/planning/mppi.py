"""Model predictive path integral control: every sequence counts by the exponential of what it costs.

Williams et al.: Information theoretic MPC for model-based reinforcement learning, 2017. With ``elites`` and several
iterations it is the planner of TD-MPC2 (Hansen et al. 2024), whose policy comes in as ``proposals`` and whose value as
``Return(value=...)``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vwm.planning.sampling_planner import SamplingPlanner


class MPPI(SamplingPlanner):
    """See ``SamplingPlanner``, which explains the other arguments.

    Args:
        horizon, samples: see ``SamplingPlanner``.
        temperature: cost by which a sequence may be worse to count 1/e as much as the best.
        relative: the temperature is a share of what a problem's sequences cost more than the best (root mean square),
            so that it fits costs of any scale; else it is in the costs' own unit.
        elites: how many of the best sequences count at all; None counts every one.
        iterations, momentum, std, min_std, colour, keep, max_norm, pick, chunk: see ``SamplingPlanner``.
    """

    def __init__(
        self,
        horizon: int = 24,
        samples: int = 64,
        temperature: float = 0.1,
        relative: bool = True,
        elites: int | None = None,
        iterations: int = 3,
        momentum: float = 0.1,
        std: float = 1.5,
        min_std: float = 0.05,
        colour: float = 2.0,
        keep: int = 4,
        max_norm: float = 1.0,
        pick: Literal["best", "mean"] = "mean",
        chunk: int = 512,
    ) -> None:
        super().__init__(horizon, samples, iterations, momentum, std, min_std, colour, keep, max_norm, pick, chunk)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if elites is not None and not 1 <= elites <= samples:
            raise ValueError(f"elites must lie in 1..{samples} (samples), or be None for all, got {elites}")
        self.temperature, self.relative, self.elites = temperature, relative, elites

    def weights(self, costs: Tensor) -> Tensor:
        """By the softmax of the negative costs."""
        best, places = costs.sort(dim=1, stable=True)
        best, places = best[:, : self.elites], places[:, : self.elites]
        excess = best - best[:, :1]
        if self.relative:
            spread = excess.double().square().mean(dim=1, keepdim=True).sqrt()  # of an infinite cost, too
            excess = (excess / spread.clamp(min=1e-12)).to(costs.dtype)
        return torch.zeros_like(costs).scatter(1, places, (-excess / self.temperature).softmax(dim=1))
