"""The convolutional blocks of DIAMOND's networks, whose parameters have the published names.

Legend: b batch, c channels, h w pixels, d width of the condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_CHANNELS = 32
"""Channels of a group of group normalization."""
HEAD_WIDTH = 8
"""Channels of a head of self-attention."""


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Make a convolution that keeps the size of an image."""
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


def num_groups(channels: int) -> int:
    """Return the groups of group normalization, one where there are few channels."""
    return max(1, channels // GROUP_CHANNELS)


class ChannelGroupNorm(nn.Module):
    """Group normalization with learned scale and shift, of float [b, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize float [b, c, h, w]."""
        normalized: Tensor = self.norm(x)
        return normalized


class ConditionedGroupNorm(nn.Module):
    """Group normalization whose scale and shift are a linear function of a condition.

    Args:
        channels: c.
        condition_width: d.
    """

    def __init__(self, channels: int, condition_width: int) -> None:
        super().__init__()
        self.groups = num_groups(channels)
        self.linear = nn.Linear(condition_width, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalize float [b, c, h, w] under a condition [b, d]."""
        scale, shift = self.linear(condition)[..., None, None].chunk(2, dim=1)
        return F.group_norm(x, self.groups) * (1 + scale) + shift


class ImageSelfAttention(nn.Module):
    """Attention between all pixels, added to its normalized input; heads of 8 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH)
        if channels % self.heads:
            raise ValueError(f"{channels} channels are not a multiple of the {self.heads} heads of their attention")
        self.norm = ChannelGroupNorm(channels)
        self.qkv_proj = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out_proj = nn.Conv2d(channels, channels, kernel_size=1)
        nn.init.zeros_(self.out_proj.weight)
        assert self.out_proj.bias is not None
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> the same shape."""
        x = self.norm(x)
        heads = self.qkv_proj(x).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        queries, keys, values = heads.unbind(1)  # [b, heads, h w, c / heads]
        # Fused attention rounds differently, which a frame's truncation to 256 levels can turn into another level.
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        attended = scores.softmax(dim=-1) @ values
        added: Tensor = self.out_proj(attended.transpose(-1, -2).flatten(1, 2).view_as(x))
        return x + added


class ConditionedResBlock(nn.Module):
    """Two convolutions after conditioned normalization, added to the input; optionally attention after them.

    Args:
        channels_in, channels_out: of the input and the output.
        condition_width: d.
        attention: whether attention follows.
    """

    def __init__(self, channels_in: int, channels_out: int, condition_width: int, attention: bool) -> None:
        super().__init__()
        same = channels_in == channels_out
        self.proj = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, kernel_size=1)
        self.norm1 = ConditionedGroupNorm(channels_in, condition_width)
        self.conv1 = conv3x3(channels_in, channels_out)
        self.norm2 = ConditionedGroupNorm(channels_out, condition_width)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.attn = ImageSelfAttention(channels_out) if attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """float [b, c, h, w] and a condition [b, d] -> float [b, c', h, w]."""
        inner = self.conv1(F.silu(self.norm1(x, condition)))
        inner = self.conv2(F.silu(self.norm2(inner, condition)))
        out: Tensor = self.attn(inner + self.proj(x))
        return out


class ResBlockStack(nn.Module):
    """Residual blocks one after the other, which may each read one more image.

    Args:
        channels: (input, output) of each block.
        condition_width: d.
        attention: whether attention follows each block.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], condition_width: int, attention: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            ConditionedResBlock(before, after, condition_width, attention) for before, after in channels
        )

    def forward(self, x: Tensor, condition: Tensor, skips: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return the output of every block; ``skips`` are concatenated to their inputs, in the same order."""
        outputs = []
        for i, block in enumerate(self.resblocks):
            x = block(x if skips is None else torch.cat((x, skips[i]), dim=1), condition)
            outputs.append(x)
        return tuple(outputs)


class HalvingConv(nn.Module):
    """A convolution that halves the size of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        nn.init.orthogonal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> float [b, c, h / 2, w / 2], rounded up."""
        halved: Tensor = self.conv(x)
        return halved


class DoublingConv(nn.Module):
    """Repeat each pixel twice along both sides, and convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> float [b, c, 2 h, 2 w]."""
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class PlainResBlock(nn.Module):
    """Normalization, SiLU and one convolution, added to the input, without a condition."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.f = nn.Sequential(ChannelGroupNorm(channels_in), nn.SiLU(), conv3x3(channels_in, channels_out))
        same = channels_in == channels_out
        self.skip_projection = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> float [b, c', h, w]."""
        out: Tensor = self.skip_projection(x) + self.f(x)
        return out


def check_levels(**values: Sequence[object]) -> None:
    """Raise ValueError unless all settings have one value for each level of resolution."""
    if len({len(value) for value in values.values()}) != 1 or not all(map(len, values.values())):
        listed = ", ".join(f"{name}={list(value)}" for name, value in values.items())
        raise ValueError(f"{listed}: give one value for each level of resolution")


def descending_channels(channels: Sequence[int], depths: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return (input, output) of the blocks of each level on the way to lower resolutions."""
    return [
        [(channels[max(0, level - 1)], channels[level])] + [(channels[level], channels[level])] * (depth - 1)
        for level, depth in enumerate(depths)
    ]
