"""Frame stacking over replay sequences, which gives the same stacks that the agent acted on.

Legend: b batch, t time, f frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stack_frames(observation: Tensor, is_first: Tensor, frames: int) -> Tensor:
    """Return the stack of the last f observations at each time step: [b, t, ...] -> [b, t - f + 1, f, ...].

    The first f - 1 time steps only serve as context. At the start of an episode its first observation is repeated.
    """
    length = observation.shape[1]
    index = torch.arange(length, device=observation.device)
    episode_start = torch.where(is_first, index, 0).cummax(1).values[:, frames - 1 :, None]
    offset = torch.arange(frames - 1, -1, -1, device=observation.device)
    indices = torch.maximum(index[frames - 1 :, None] - offset, episode_start)
    rows = torch.arange(len(observation), device=observation.device)[:, None, None]
    return observation[rows, indices]
