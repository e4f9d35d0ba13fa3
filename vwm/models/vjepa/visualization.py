"""Visualize features."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def pca_rgb_video(features: Tensor, grid: tuple[int, int, int], size: tuple[int, ...]) -> Tensor:
    """Show the first three principal components as red, green and blue, with one basis for all clips.

    Args:
        features: [b, t*h*w, d].
        grid: (t, h, w).
        size: (frames, height, width) of the video.

    Returns:
        uint8 [b, frames, height, width, 3].
    """
    t, h, _ = grid
    x = features.float() - features.float().mean(dim=0)  # show differences between clips, not between positions
    flat = x.flatten(0, 1)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    components = x @ vectors[:, -3:].flip(1)
    components = (0.5 + components / (6 * components.flatten(0, 1).std(dim=0).clamp(min=1e-6))).clamp(0, 1)
    video = rearrange(components, "b (t h w) c -> b c t h w", t=t, h=h)
    video = F.interpolate(video, size=size, mode="nearest")
    return rearrange((255 * video).round().byte(), "b c t h w -> b t h w c")
