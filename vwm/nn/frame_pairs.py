"""Tokens of frames that say what moved since the frame before.

Legend: b batch, t time, H W pixels, p patch side, n tokens per frame, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIRST_CHANNELS = 32


class FramePairEmbedding(nn.Module):
    """A convolutional network over each frame and the one before it; the first frame is its own predecessor.

    Args:
        patch_size: p, a power of two: each halving of the resolution is a layer.
        width: d.

    Raises:
        ValueError: another patch size.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << halvings:
            raise ValueError(f"pairs of frames require a power of two as patch_size, got {patch_size}")
        inner = [FIRST_CHANNELS * (i + 1) for i in range(halvings - 1)]
        layers: list[nn.Module] = []
        for i, (channels, out) in enumerate(zip([6, *inner], [*inner, width], strict=True)):
            layers.append(nn.Conv2d(channels, out, 3, stride=2, padding=1))
            if i < halvings - 1:
                layers += [nn.GroupNorm(1, out), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """[b, t, 3, H, W] -> [b, t, n, d]."""
        before = torch.cat((video[:, :1], video[:, :-1]), dim=1)
        x: Tensor = self.layers(torch.cat((before, video), dim=2).flatten(0, 1))
        return x.flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])
