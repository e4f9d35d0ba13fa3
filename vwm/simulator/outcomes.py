"""What heads say of a step, as a simulator tells it: the mean reward, and an end that is drawn from its probability."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.nn.outcomes import OutcomeHeads
from vwm.nn.random import fold, uniform

END = -4
"""What a world's seed is folded with for drawing its end."""


def draw_outcomes(
    outcomes: OutcomeHeads | None, features: Tensor, lead: Tensor, seed: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Reward float [b], and whether the world ends, bool [b]; zeros where there are no heads.

    Args:
        outcomes: the heads.
        features: float [b, d], of the frame that the action is taken at.
        lead: float [b, d], the vector of the action.
        seed: int64 [b], of each world.
        position: int64 [b], frames that each has seen.
    """
    if outcomes is None:
        zeros = torch.zeros(len(seed), device=seed.device)
        return zeros, zeros.bool()
    said = outcomes(features[:, None].float(), lead[:, None].float())
    chance = uniform(fold(fold(seed, END), position))
    return said.reward[:, 0], chance < said.terminated[:, 0]
