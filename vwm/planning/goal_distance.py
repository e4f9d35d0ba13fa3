"""Image goals: the distance between predicted latents and the encoded goal image.

Legend: b problems, n worlds, h steps of the horizon.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vwm.core.capabilities import EncodesFrames
from vwm.core.simulator import Simulator, StepOutput
from vwm.planning.sampling_planner import SequenceRollout

LatentMetric = Literal["l1", "l2"]
GoalReduction = Literal["end", "sum", "min"]


@torch.no_grad()
def encode_goal_frames(simulator: Simulator, frames: Tensor) -> Tensor:
    """Encode goal images to latents of a world; where a latent holds k frames, to one that shows the goal k times.

    Args:
        simulator: one that encodes frames to continuous latents (``EncodesFrames``).
        frames: uint8 [b, h, w, 3].

    Returns:
        float [b, ...], comparable with ``StepOutput.latent``.

    Raises:
        ValueError: the frames have another size than the world's, or its latents are discrete.
    """
    simulator.check_context(frames[:, None])
    if isinstance(simulator, EncodesFrames):
        frames_per_step = simulator.spec.frames_per_step
        still = frames[:, None].expand(-1, 1 if frames_per_step == 1 else 1 + frames_per_step, *frames.shape[1:])
        latents = simulator.encode(still)[:, -1]
        if latents.is_floating_point():
            return latents
    raise ValueError(
        f"a {type(simulator).__name__} has latents without a distance (tokens of a codebook, or no encode method): "
        "plan with a world that predicts continuous latents"
    )


class GoalDistance:
    """Cost of a sequence: the distance of its latents to the goal's latent.

    Args:
        goal: float [b, ...], the encoded goal of each problem.
        metric: ``l1``, the mean absolute difference (V-JEPA 2-AC), or ``l2``, the root mean squared difference.
        reduction: ``end`` takes the last step, ``sum`` the weighted mean over all steps, ``min`` the closest step.
        decay: for ``sum``: the weight of a step divided by that of the next one; 1 weights all alike, 0 equals ``end``.

    Raises:
        ValueError: an unknown metric or reduction, or a decay outside 0..1.
    """

    def __init__(
        self, goal: Tensor, metric: LatentMetric = "l1", reduction: GoalReduction = "sum", decay: float = 1.0
    ) -> None:
        if metric not in ("l1", "l2") or reduction not in ("end", "sum", "min"):
            raise ValueError(f"metric must be l1 or l2 and reduction end, sum or min, got {metric!r} and {reduction!r}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in 0..1, got {decay}")
        self.goal = goal
        self.metric = metric
        self.reduction = reduction
        self.decay = decay

    def step_cost(self, output: StepOutput, problem_index: Tensor) -> Tensor:
        """Return the distance after a step; see ``PlanningObjective.step_cost``."""
        return latent_distance(output.latent, self.goal[problem_index], self.metric)

    def sequence_cost(self, rollout: SequenceRollout) -> Tensor:
        """Reduce the distances over time; see ``PlanningObjective.sequence_cost``."""
        return reduce_costs(rollout.costs, self.reduction, self.decay)


def reduce_costs(costs: Tensor, reduction: GoalReduction, decay: float = 1.0) -> Tensor:
    """Reduce costs over time, float [n, h] to [n]; see ``GoalDistance``."""
    if reduction == "end":
        return costs[:, -1]
    if reduction == "min":
        return costs.amin(dim=1)
    weights = decay ** torch.arange(costs.shape[1], device=costs.device).flip(0)
    return (costs * weights).sum(dim=1) / weights.sum()


def latent_distance(latent: Tensor, goal: Tensor, metric: LatentMetric) -> Tensor:
    """Compare two batches of latents [n, ...]; return float [n].

    Raises:
        ValueError: their shapes differ.
    """
    if latent.shape != goal.shape:
        raise ValueError(f"the world predicts latents {list(latent.shape[1:])}, the goal has {list(goal.shape[1:])}")
    difference = (latent - goal).flatten(1)
    return difference.abs().mean(dim=1) if metric == "l1" else difference.square().mean(dim=1).sqrt()
