"""Causal video convolutions with one implementation for whole clips and streams.

Every layer is ``(x, state) -> (y, state)``. A whole clip is a stream of one chunk, so parallel and streaming outputs
are equal. Kernels over space and time are factored into a spatial and a temporal one.

The memory layout is [b, t, h, w, c]: spatial kernels view it as [b t, c, h, w] and temporal kernels as [b, c, t, h w],
both channels-last and without a copy.

Legend: b batch, t time, h w space, c channels, k kernel size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class SpatialConv(nn.Conv2d):
    """A k x k convolution of each frame independently: [b, t, h, w, c] -> [b, t, h, w, c']."""

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.flatten(0, 1).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class CausalTemporalConv(nn.Conv2d):
    """A convolution over the last k frames at each spatial position.

    The state holds the previous k - 1 frames, [b, k - 1, h, w, c], initially zeros.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__(channels, out, (kernel, 1))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[b, t, h, w, c] -> [b, t, h, w, c']; t may be 0."""
        frames, (height, width) = x.shape[1], x.shape[2:4]
        if not frames:
            return x.new_zeros(*x.shape[:-1], self.out_channels), past
        x = torch.cat((past.to(x.dtype), x), dim=1)
        y = super().forward(x.flatten(2, 3).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(2, (height, width)), x[:, frames:]


class CausalConvBlock(nn.Module):
    """Residual block: norm, spatial convolution, SiLU, temporal convolution, initialized to the identity.

    The norm is over the channels of one position and mixes neither frames nor positions, so that streams and tiles
    give the same result as a whole clip.
    """

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.space = SpatialConv(width, width)
        self.time = CausalTemporalConv(width, width, kernel)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """[b, t, h, w, c] -> [b, t, h, w, c]."""
        y, past = self.time(F.silu(self.space(self.norm(x))), past)
        return x + y, past


class CausalConvStack(nn.Module):
    """A sequence of blocks at one resolution."""

    def __init__(self, width: int, depth: int, kernel: int = 3) -> None:
        super().__init__()
        self.width = width
        self.past_frames = kernel - 1
        self.blocks = nn.ModuleList(CausalConvBlock(width, kernel) for _ in range(depth))

    def init_state(self, like: Tensor, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """The state before the first frame, with the device and dtype of ``like``."""
        return (like.new_zeros(batch, self.past_frames, height, width, self.width),) * len(self.blocks)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[b, t, h, w, c] -> [b, t, h, w, c]."""
        after = []
        for block, past in zip(self.blocks, state, strict=True):
            x, past = block(x, past)
            after.append(past)
        return x, tuple(after)


class FrameBuffer(NamedTuple):
    """Frames of an incomplete group. Counts are stored as shapes, so that reading them needs no device synchronization.

    Attributes:
        frames: [b, p, ...], the p frames of the incomplete group.
        before: [b, r - 1] before the first frame, then [b, 0].
    """

    frames: Tensor
    before: Tensor


class SpaceTimeToDepth(nn.Module):
    """Move blocks of r frames and s x s positions to channels.

    The first frame is repeated to fill the first group, so that 1 + r k frames make 1 + k groups and an image is a
    video of one frame.

    Args:
        time: r.
        space: s.
    """

    def __init__(self, time: int, space: int) -> None:
        super().__init__()
        self.time = time
        self.space = space

    def init_state(self, like: Tensor, batch: int, height: int, width: int, channels: int) -> FrameBuffer:
        """The state before the first frame, with the device and dtype of ``like``."""
        return FrameBuffer(like.new_zeros(batch, 0, height, width, channels), like.new_zeros(batch, self.time - 1))

    def forward(self, x: Tensor, state: FrameBuffer) -> tuple[Tensor, FrameBuffer]:
        """[b, t, h s, w s, c] -> [b, (t + p) // r, h, w, r s s c]."""
        frames, before = state
        if x.shape[1]:
            x = torch.cat((frames.to(x.dtype), x[:, :1].repeat(1, before.shape[1], 1, 1, 1), x), dim=1)
            before = before[:, :0]
        else:
            x = frames
        full = x.shape[1] // self.time * self.time
        groups = rearrange(
            x[:, :full],
            "b (t r) (h p) (w q) c -> b t h w (r p q c)",
            r=self.time,
            p=self.space,
            q=self.space,
        )
        return groups, FrameBuffer(x[:, full:], before)


class DepthToSpaceTime(nn.Module):
    """Move channels to blocks of frames and positions, the inverse of ``SpaceTimeToDepth``.

    Only the last frame of the first group is kept. The state is [b, r - 1] before the first group, then [b, 0]: its
    second size is the number of frames to drop.
    """

    def __init__(self, time: int, space: int) -> None:
        super().__init__()
        self.time = time
        self.space = space

    def init_state(self, like: Tensor, batch: int) -> Tensor:
        """The state before the first group, with the device and dtype of ``like``."""
        return like.new_zeros(batch, self.time - 1)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """[b, t, h, w, r s s c] -> [b, t r, h s, w s, c], or r - 1 frames fewer at the start."""
        drop = before.shape[1]
        y = rearrange(x, "b t h w (r p q c) -> b (t r) (h p) (w q) c", r=self.time, p=self.space, q=self.space)
        return (y[:, drop:], before[:, :0]) if x.shape[1] else (y, before)
