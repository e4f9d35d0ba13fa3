"""The layers of MuZero's networks: residual blocks, and the representation of vectors and of images.

Legend: b batch, d width, h w image or grid.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

ImageNetwork = Literal["strided", "pooled"]

POOLED_DOWNSAMPLING = 16
"""Ratio of image size to latent grid of the ``pooled`` representation: 96 pixels give 6 positions (both papers)."""


class MuZeroResidualBlock(nn.Module):
    """Residual block of two layers."""

    def __init__(self, width: int, from_pixels: bool) -> None:
        super().__init__()
        self.first = linear_or_conv(width, width, from_pixels)
        self.first_norm = layer_or_group_norm(width, from_pixels)
        self.second = linear_or_conv(width, width, from_pixels)
        self.second_norm = layer_or_group_norm(width, from_pixels)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d, ...] -> [b, d, ...], non-negative."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(y)))


class DownsamplingBlock(nn.Module):
    """Residual block that halves the sides of a grid, by a strided convolution on both of its branches."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.first_norm = layer_or_group_norm(outputs, True)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.second_norm = layer_or_group_norm(outputs, True)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d, h, w] -> [b, d', h / 2, w / 2], non-negative."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(y)))


def vector_representation(inputs: int, width: int, blocks: int) -> list[nn.Module]:
    """Make layers from vectors [b, inputs] to [b, d]."""
    first = [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
    return [*first, *(MuZeroResidualBlock(width, False) for _ in range(blocks))]


def image_representation(
    inputs: int, width: int, blocks: int, kind: ImageNetwork, downsampling: int
) -> list[nn.Module]:
    """Make layers from stacks of images [b, inputs, h, w] to a grid [b, d, h / downsampling, w / downsampling].

    Args:
        inputs: channels of a stack.
        width: d; the first stage has half of it.
        blocks: residual blocks, of each stage (``strided``) or of the last one (``pooled``).
        kind: ``strided``: stages that halve the sides by a convolution with stride 2. ``pooled``: the network for 96 x
            96 pixels of both papers, which halves the sides by two convolutions and then by two average poolings, with
            a residual block after each of the first three.
        downsampling: 2, 4, 8 or 16; 16 for ``pooled``.

    Raises:
        ValueError: there is no such kind, or it has another downsampling.
    """
    if kind == "pooled" and downsampling == POOLED_DOWNSAMPLING:
        return _pooled_representation(inputs, width, blocks)
    if kind == "strided" and downsampling in (2, 4, 8, 16):
        return _strided_representation(inputs, width, blocks, stages=downsampling.bit_length() - 1)
    raise ValueError(
        f"image_network={kind!r} with image_downsampling={downsampling}: it must be strided with 2, 4, 8 or 16, or "
        f"pooled with {POOLED_DOWNSAMPLING}"
    )


def _strided_representation(inputs: int, width: int, blocks: int, stages: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for stage_width in [max(1, width // 2), *[width] * (stages - 1)]:
        layers += [
            nn.Conv2d(inputs, stage_width, 3, stride=2, padding=1),
            layer_or_group_norm(stage_width, True),
            nn.ReLU(),
        ]
        layers += [MuZeroResidualBlock(stage_width, True) for _ in range(blocks)]
        inputs = stage_width
    return layers if stages > 1 else [*layers, nn.Conv2d(inputs, width, 1)]


def _pooled_representation(inputs: int, width: int, blocks: int) -> list[nn.Module]:
    half = max(1, width // 2)
    return [
        nn.Conv2d(inputs, half, 3, stride=2, padding=1),
        layer_or_group_norm(half, True),
        nn.ReLU(),
        MuZeroResidualBlock(half, True),
        DownsamplingBlock(half, width),
        MuZeroResidualBlock(width, True),
        nn.AvgPool2d(3, stride=2, padding=1),
        MuZeroResidualBlock(width, True),
        nn.AvgPool2d(3, stride=2, padding=1),
        *(MuZeroResidualBlock(width, True) for _ in range(blocks)),
    ]


def linear_or_conv(inputs: int, outputs: int, from_pixels: bool) -> nn.Module:
    """Make a layer of vectors, or of 3 x 3 positions of a grid."""
    return nn.Conv2d(inputs, outputs, 3, padding=1) if from_pixels else nn.Linear(inputs, outputs)


def layer_or_group_norm(width: int, from_pixels: bool) -> nn.Module:
    """Make a normalization over all numbers of a sample, so that a batch is normalized as its entries are."""
    return nn.GroupNorm(1, width) if from_pixels else nn.LayerNorm(width)
