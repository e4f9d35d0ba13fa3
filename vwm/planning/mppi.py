"""Model predictive path integral control: each sequence is weighted by the exponential of its negative cost.

Williams et al.: Information theoretic MPC for model-based reinforcement learning, 2017. With ``elites`` and several
iterations it is the planner of TD-MPC2 (Hansen et al. 2024), whose policy gives ``proposals`` and whose value function
is ``NegativeReturnObjective(terminal_value=...)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vwm.planning.sampling_planner import SamplingPlanner


@dataclass(frozen=True, kw_only=True)
class MPPI(SamplingPlanner):
    """Plan by path integral control.

    Attributes:
        selection: see ``SamplingPlanner``; here the mode of the last distribution is the default.
        temperature: a sequence whose cost exceeds the lowest by this much has 1/e of its weight.
        relative_temperature: multiply the temperature by the root mean square of the costs' excess over the lowest, per
            problem, so that it suits costs of any scale; False takes it in the unit of the costs.
        elites: number of best sequences that have a weight; None weights all.
        horizon, samples, iterations, momentum, init_std, min_std, noise_exponent, keep_elites, action_bound,
            max_batch_size: see ``SamplingPlanner``.

    Raises:
        ValueError: a value is out of range.
    """

    selection: Literal["best", "mean"] = "mean"
    temperature: float = 0.1
    relative_temperature: bool = True
    elites: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.elites is not None and not 1 <= self.elites <= self.samples:
            raise ValueError(f"elites must lie in 1..{self.samples} (samples), or be None for all, got {self.elites}")

    def sequence_weights(self, costs: Tensor) -> Tensor:
        """Take the softmax of the negative costs over the elites."""
        lowest, indices = costs.sort(dim=1, stable=True)
        lowest = lowest[:, : self.elites]
        indices = indices[:, : self.elites]
        excess = lowest - lowest[:, :1]
        if self.relative_temperature:
            # float64: the square of the largest float32, which stands for an infinite cost, must not overflow
            scale = excess.double().square().mean(dim=1, keepdim=True).sqrt()
            excess = (excess / scale.clamp(min=1e-12)).to(costs.dtype)
        return torch.zeros_like(costs).scatter(1, indices, (-excess / self.temperature).softmax(dim=1))
