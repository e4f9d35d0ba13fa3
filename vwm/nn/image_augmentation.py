"""Random changes of images for learning, equal for all images of a stack; offsets come from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_INTENSITY_DEVIATIONS = 2.0
"""Standard deviations at which the noise of intensities is cut off."""


def random_shift(frames: Tensor, max_shift: int = 3) -> Tensor:
    """Shift each stack of images by random offsets, repeating the edges (DrQ-v2, arXiv 2107.09645).

    The offsets come from torch's generator and are the same for all images of a stack.

    Args:
        frames: uint8 [b, s, h, w, 3].
        max_shift: Largest offset in pixels, in each direction.
    """
    batch, _, height, width, _ = frames.shape
    offset = torch.randint(-max_shift, max_shift + 1, (2, batch, 1), device=frames.device)
    rows = (torch.arange(height, device=frames.device) + offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) + offset[1]).clamp(0, width - 1)
    stacks = torch.arange(batch, device=frames.device)[:, None, None]
    # Index tensors on both sides of a slice put their own dimensions first: [b, h, w, s, 3].
    return frames[stacks, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def random_intensity(frames: Tensor, scale: float = 0.05) -> Tensor:
    """Multiply each stack of images by 1 + ``scale`` times truncated normal noise (SPR, arXiv 2007.05929).

    Args:
        frames: uint8 or float [b, s, h, w, 3].
        scale: standard deviation before the noise is cut off.

    Returns:
        float32 [b, s, h, w, 3], which may leave 0..255.
    """
    noise = torch.randn(len(frames), 1, 1, 1, 1, device=frames.device)
    return frames.float() * (1 + scale * noise.clamp(-MAX_INTENSITY_DEVIATIONS, MAX_INTENSITY_DEVIATIONS))
