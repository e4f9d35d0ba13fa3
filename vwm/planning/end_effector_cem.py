"""The cross-entropy method of V-JEPA 2-AC for robot arms (arXiv 2506.09985; its published code, notebooks/utils).

It searches over positions and the gripper alone, with bounds, deviations and momenta of their own; the arm does not
turn.

Legend: b problems, k sequences per problem, h steps of the horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.checks import check_positive
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State
from vwm.core.states import state_batch_size
from vwm.planning.colored_noise import draw_colored_noise
from vwm.planning.sampling_planner import PlanningObjective, sequence_costs

ACTION_SIZE = 7
SEARCHED = 4
"""Of the numbers of an action: the position's three and the gripper's one."""


class EndEffectorPlan(NamedTuple):
    """A plan.

    Attributes:
        actions: float [b, h, 7]: changes of position (meters), angles (0) and gripper.
        mean, std: float [b, h, 4], the distribution at the end of the search; the gripper is the last.
    """

    actions: Tensor
    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class EndEffectorCEM:
    """Plan differences of poses of an end effector.

    Attributes:
        horizon: steps of a sequence, h.
        samples: sequences drawn per iteration and problem.
        elites: number of best sequences that the distribution is fitted to; the deviation is the unbiased one.
        iterations: number of times that the distribution moves.
        momentum_mean, momentum_std: share of the old mean and deviation of positions that is kept when they move.
        gripper_momentum_mean, gripper_momentum_std: the same of the gripper.
        position_bound: largest change of a position in a step, in meters, which is also its first deviation.
        gripper_bound: largest change of the gripper in a drawn step, whose first deviation is 1.
        gripper_threshold: planned changes of the gripper that are smaller become 0.
        close_gripper: from this step on the gripper closes with 1; None leaves it to the search.
        fixed: values of searched numbers (0 to 2 the position, 3 the gripper) that all drawn actions have.
        max_batch_size: worlds that step at once.

    Raises:
        ValueError: a value is out of range.
    """

    horizon: int = 2
    samples: int = 400
    elites: int = 10
    iterations: int = 10
    momentum_mean: float = 0.15
    momentum_std: float = 0.15
    gripper_momentum_mean: float = 0.15
    gripper_momentum_std: float = 0.15
    position_bound: float = 0.05
    gripper_bound: float = 0.75
    gripper_threshold: float = 0.25
    close_gripper: int | None = None
    fixed: Mapping[int, float] = field(default_factory=dict)
    max_batch_size: int = 512

    def __post_init__(self) -> None:
        check_positive(
            horizon=self.horizon,
            samples=self.samples,
            iterations=self.iterations,
            max_batch_size=self.max_batch_size,
        )
        if not (self.position_bound > 0 and self.gripper_bound > 0):
            raise ValueError(f"bounds must be above 0, got {self.position_bound} and {self.gripper_bound}")
        if not 2 <= self.elites <= self.samples:
            raise ValueError(f"elites must lie in 2..{self.samples} (samples), got {self.elites}")
        momenta = (self.momentum_mean, self.momentum_std, self.gripper_momentum_mean, self.gripper_momentum_std)
        if not all(0 <= momentum < 1 for momentum in momenta):
            raise ValueError(f"momenta must be at least 0 and below 1, got {momenta}")
        if not set(self.fixed) <= set(range(SEARCHED)):
            raise ValueError(f"fixed has keys from 0 to {SEARCHED - 1} (x, y, z, gripper), got {list(self.fixed)}")

    @torch.no_grad()
    def plan(
        self, simulator: Simulator, state: State, objective: PlanningObjective, seed: int | Tensor = 0
    ) -> EndEffectorPlan:
        """Search for the actions with the lowest cost; the plan is the mean of the last distribution.

        Args:
            simulator: a world whose actions are differences of poses, 7 numbers.
            state: of b problems, as the simulator returned it.
            objective: the cost of a sequence; V-JEPA 2-AC's is ``GoalDistance(goal, "l1", "end")``.
            seed: one, from which every problem derives its own, or int64 [b]. Give another at every decision.

        Raises:
            ValueError: the world has other actions.
        """
        space = simulator.spec.actions
        if space.kind != "continuous" or space.size != ACTION_SIZE:
            raise ValueError(
                f"an EndEffectorCEM plans {ACTION_SIZE} continuous numbers, and the world's actions are {space}"
            )
        batch, device = state_batch_size(state), tree_leaves(state)[0].device
        seeds = world_seeds(seed, batch, device)
        mean = torch.zeros(batch, self.horizon, SEARCHED, device=device)
        for axis, value in self.fixed.items():
            mean[..., axis] = value
        std = torch.tensor([self.position_bound] * 3 + [1.0], device=device).expand_as(mean)
        keep_mean = torch.tensor([self.momentum_mean] * 3 + [self.gripper_momentum_mean], device=device)
        keep_std = torch.tensor([self.momentum_std] * 3 + [self.gripper_momentum_std], device=device)
        for iteration in range(self.iterations):
            noise = draw_colored_noise(fold_in(seeds, iteration), self.samples, self.horizon, SEARCHED, 0.0)
            drawn = self._bounded(noise * std[:, None] + mean[:, None])
            costs = sequence_costs(simulator, state, objective, _whole_actions(drawn), self.max_batch_size)
            best = costs.topk(self.elites, largest=False).indices
            elites = drawn[torch.arange(batch, device=device)[:, None], best]
            mean = elites.mean(dim=1) * (1 - keep_mean) + mean * keep_mean
            std = elites.std(dim=1) * (1 - keep_std) + std * keep_std
        gripper = mean[..., 3:]
        still = gripper.abs() < self.gripper_threshold
        planned = torch.cat((mean[..., :3], gripper.masked_fill(still, 0.0)), dim=-1)
        return EndEffectorPlan(_whole_actions(planned), mean, std)

    def _bounded(self, drawn: Tensor) -> Tensor:
        """Clip drawn numbers [b, k, h, 4], and set those that are fixed."""
        position = drawn[..., :3].clamp(-self.position_bound, self.position_bound)
        bounded = torch.cat((position, drawn[..., 3:].clamp(-self.gripper_bound, self.gripper_bound)), dim=-1)
        for axis, value in self.fixed.items():
            bounded[..., axis] = value
        if self.close_gripper is not None:
            bounded[:, :, self.close_gripper :, 3] = 1.0
        return bounded


def _whole_actions(searched: Tensor) -> Tensor:
    """Insert the angles, which do not change: [..., 4] -> [..., 7]."""
    angles = torch.zeros_like(searched[..., :3])
    return torch.cat((searched[..., :3], angles, searched[..., 3:]), dim=-1)
