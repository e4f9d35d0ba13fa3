"""Layers that the autoencoder and the diffusion transformer of Oasis share, with the published names of weights."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6


class PatchEmbedding(nn.Module):
    """Embed the patches of images: float [b, c, h p, w p] -> [b, h w, d].

    Args:
        patch_size: p.
        channels: c.
        width: d.
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.proj(images).flatten(2).transpose(1, 2)


class GELUPerceptron(nn.Module):
    """Two linear layers with a GELU between them: [..., width] -> [..., width].

    Args:
        width: of input and output.
        ratio: hidden channels per channel of the input.
        approximate: which GELU.
    """

    def __init__(self, width: int, ratio: float, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., n, d] -> [..., heads, n, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, n, c] -> [..., n, heads c]."""
    return x.transpose(-2, -3).flatten(-2)
