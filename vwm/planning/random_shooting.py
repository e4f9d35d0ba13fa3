"""Random shooting: draw action sequences uniformly, and take the best one.

The simplest planner (Nagabandi et al., arXiv 1708.02596, section IV-B), with which PETS compares the cross-entropy
method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.planning.action_sequences import (
    ActionSequences,
    CategoricalActionSequences,
    UniformActionSequences,
    shift_sequences,
)
from vwm.planning.sampling_planner import ActionPlan, SamplingPlanner


@dataclass(frozen=True, kw_only=True)
class RandomShooting(SamplingPlanner):
    """Plan by random shooting: ``samples`` sequences, each action uniform and independent of the others.

    Attributes:
        horizon, samples, action_bound, max_batch_size: see ``SamplingPlanner``, whose other attributes must keep the
            values that they have here.

    Raises:
        ValueError: a value is out of range, or one that must stay was changed.
    """

    samples: int = 1000
    iterations: int = 1
    momentum: float = 0.0
    noise_exponent: float = 0.0
    keep_elites: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.iterations, self.momentum, self.noise_exponent, self.keep_elites) != (1, 0.0, 0.0, 0):
            raise ValueError("random shooting has iterations=1, momentum=0, noise_exponent=0 and keep_elites=0")

    def sequence_weights(self, costs: Tensor) -> Tensor:
        """Give the best sequence all weight."""
        return torch.zeros_like(costs).scatter(1, costs.argmin(dim=1, keepdim=True), 1.0)

    def shift_plan(self, plan: ActionPlan, steps: int) -> ActionPlan:
        """See ``SamplingPlanner.shift_plan``; the next plan is drawn like the first one."""
        distribution: ActionSequences = plan.distribution
        if isinstance(distribution, CategoricalActionSequences):
            size = distribution.probabilities.shape[-1]
            distribution = CategoricalActionSequences(torch.full_like(distribution.probabilities, 1 / size))
        return plan._replace(actions=shift_sequences(plan.actions, steps, 1), distribution=distribution)

    def _initial_distribution(self, space: ActionSpace, batch: int, device: torch.device) -> ActionSequences:
        if space.kind == "discrete":
            return CategoricalActionSequences.initial(batch, self.horizon, space.size, device)
        zeros = torch.zeros(batch, self.horizon, space.size, device=device)
        return UniformActionSequences(zeros, zeros.new_full((batch, 1, 1), self.action_bound))
