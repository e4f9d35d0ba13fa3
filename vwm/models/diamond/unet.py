"""DIAMOND's U-Net. Legend: b batch, c channels, h w pixels, d width of the condition."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vwm.models.diamond.blocks import DoublingConv, HalvingConv, ResBlockStack, check_levels, descending_channels


class ConditionedUNet(nn.Module):
    """A U-Net of residual blocks, whose skips start after every block and after every change of resolution.

    Args:
        condition_width: d.
        depths: number of blocks of each level; one more on the way up.
        channels: of each level.
        attention: whether the blocks of each level attend; those in the middle always do.

    Raises:
        ValueError: the settings name different numbers of levels.
    """

    def __init__(
        self, condition_width: int, depths: Sequence[int], channels: Sequence[int], attention: Sequence[bool]
    ) -> None:
        super().__init__()
        check_levels(depths=depths, channels=channels, attention=attention)
        self.halvings = len(channels) - 1
        down = descending_channels(channels, depths)
        up = [
            [(2 * channels[i], channels[i])] * depth
            + [(channels[max(0, i - 1)] + channels[i], channels[max(0, i - 1)])]
            for i, depth in enumerate(depths)
        ]
        levels = range(len(channels))
        last = channels[-1]
        self.d_blocks = nn.ModuleList(ResBlockStack(down[i], condition_width, bool(attention[i])) for i in levels)
        self.u_blocks = nn.ModuleList(
            ResBlockStack(up[i], condition_width, bool(attention[i])) for i in reversed(levels)
        )
        self.mid_blocks = ResBlockStack([(last, last)] * 2, condition_width, attention=True)
        self.downsamples = nn.ModuleList([nn.Identity(), *(HalvingConv(c) for c in channels[:-1])])
        self.upsamples = nn.ModuleList([nn.Identity(), *(DoublingConv(c) for c in reversed(channels[:-1]))])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """float [b, c, h, w] and a condition [b, d] -> float [b, c, h, w]; sizes are padded to whole halves."""
        height, width = x.shape[-2:]
        multiple = 2**self.halvings
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple))
        skips: list[tuple[Tensor, ...]] = []
        for down, halve in zip(self.d_blocks, self.downsamples, strict=True):
            x = halve(x)
            outputs = down(x, condition)
            skips.append((x, *outputs))
            x = outputs[-1]
        x = self.mid_blocks(x, condition)[-1]
        for up, double, skip in zip(self.u_blocks, self.upsamples, reversed(skips), strict=True):
            x = up(double(x), condition, skip[::-1])[-1]
        return x[..., :height, :width]
