"""Goals as pictures: how far a predicted latent is from what the goal's picture is encoded to.

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
    """What pictures look like to a world.

    Args:
        simulator: one that can encode frames to continuous latents (``EncodesFrames``).
        frames: uint8 [b, h, w, 3].

    Returns:
        float [b, ...], to be compared with ``StepOutput.latent``.

    Raises:
        ValueError: the world's latents are no numbers that can be compared, or frames of another size.
    """
    simulator.check_context(frames[:, None])
    if isinstance(simulator, EncodesFrames):
        latents = simulator.encode(frames[:, None])[:, -1]
        if latents.is_floating_point():
            return latents
    raise ValueError(
        f"a {type(simulator).__name__} has latents without a distance (tokens of a codebook, or no encode method): "
        "plan with a world that predicts continuous latents"
    )


class GoalDistance:
    """How far from the goal a sequence leads, in representation space.

    Args:
        goal: float [b, ...], what the goal of each problem is encoded to.
        metric: ``l1``, the mean absolute difference (V-JEPA 2-AC), or ``l2``, the root of the mean squared one.
        over: ``end`` looks at the last step alone, ``sum`` at the mean over all steps, ``min`` at the nearest one.
        decay: for ``sum``: each step counts this much of the one after it; 1 weighs all alike, 0 is ``end``.

    Raises:
        ValueError: a setting is not known.
    """

    def __init__(
        self, goal: Tensor, metric: LatentMetric = "l1", over: GoalReduction = "sum", decay: float = 1.0
    ) -> None:
        if metric not in ("l1", "l2") or over not in ("end", "sum", "min"):
            raise ValueError(f"metric must be l1 or l2 and over end, sum or min, got {metric!r} and {over!r}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in 0..1, got {decay}")
        self.goal, self.metric, self.over, self.decay = goal, metric, over, decay

    def step(self, output: StepOutput, problem: Tensor) -> Tensor:
        """See ``Objective.step``: the distance after the step."""
        return latent_distance(output.latent, self.goal[problem], self.metric)

    def total(self, rollout: SequenceRollout) -> Tensor:
        """See ``Objective.total``."""
        costs = rollout.costs
        if self.over == "end":
            return costs[:, -1]
        if self.over == "min":
            return costs.amin(dim=1)
        weights = self.decay ** torch.arange(costs.shape[1], device=costs.device).flip(0)
        return (costs * weights).sum(dim=1) / weights.sum()


def latent_distance(latent: Tensor, goal: Tensor, metric: LatentMetric) -> Tensor:
    """Two batches of latents [n, ...] -> float [n]."""
    if latent.shape != goal.shape:
        raise ValueError(f"the world predicts latents {list(latent.shape[1:])}, the goal has {list(goal.shape[1:])}")
    difference = (latent - goal).flatten(1)
    return difference.abs().mean(dim=1) if metric == "l1" else difference.square().mean(dim=1).sqrt()
