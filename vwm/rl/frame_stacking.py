"""The last frames that an agent sees at once, out of pieces of replay: what is learned from is what was acted on.

Legend: b batch, t time, f frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stack_frames(observation: Tensor, is_first: Tensor, frames: int) -> Tensor:
    """What an agent saw at each moment that has enough before it: [b, t, ...] -> [b, t - f + 1, f, ...].

    Before an episode's beginning its first observation stands.
    """
    length = observation.shape[1]
    place = torch.arange(length, device=observation.device)
    begin = torch.where(is_first, place, 0).cummax(1).values[:, frames - 1 :, None]
    back = torch.arange(frames - 1, -1, -1, device=observation.device)
    wanted = torch.maximum(place[frames - 1 :, None] - back, begin)
    rows = torch.arange(len(observation), device=observation.device)[:, None, None]
    return observation[rows, wanted]
