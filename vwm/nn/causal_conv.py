"""Convolutions for video that are causal in time, by one path for whole clips and for streams.

Every layer is ``(x, state) -> (y, state)``. A whole clip is a stream of one piece, so parallel and streaming
outputs cannot differ. A kernel over space and time is factored into one over the frame and one over time.

Frames lie in memory as [b, t, h, w, c]: a kernel over the frame then sees [b t, c, h, w] and one over time
[b, c, t, h w], both in the channels-last layout and without a copy.

Legend: b batch, t time, h w space, c channels, k kernel size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SpatialConv(nn.Conv2d):
    """A k x k convolution of every frame by itself: [b, t, h, w, c] -> [b, t, h, w, c']."""

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.flatten(0, 1).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class CausalTemporalConv(nn.Conv2d):
    """A convolution over the last k frames at each place.

    Its state is the k - 1 frames before, [b, k - 1, h, w, c], zeros at first.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__(channels, out, (kernel, 1))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[b, t, h, w, c] -> [b, t, h, w, c']; any t, also none."""
        frames, (height, width) = x.shape[1], x.shape[2:4]
        if not frames:
            return x.new_zeros(*x.shape[:-1], self.out_channels), past
        x = torch.cat((past.to(x.dtype), x), dim=1)
        y = super().forward(x.flatten(2, 3).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(2, (height, width)), x[:, frames:]


class CausalConvBlock(nn.Module):
    """Norm, a kernel over the frame, SiLU, a kernel over time; a residual branch that starts at zero.

    The norm is over the channels at each place: it mixes neither frames nor places, so a stream and a tile see what
    a whole clip sees.
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
    """Blocks of one resolution, one after the other."""

    def __init__(self, width: int, depth: int, kernel: int = 3) -> None:
        super().__init__()
        self.width, self.memory = width, kernel - 1
        self.checkpointing = False
        self.blocks = nn.ModuleList(CausalConvBlock(width, kernel) for _ in range(depth))

    def init_state(self, like: Tensor, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Before the first frame; ``like`` has the device and the dtype."""
        return (like.new_zeros(batch, self.memory, height, width, self.width),) * len(self.blocks)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[b, t, h, w, c] -> [b, t, h, w, c]."""
        after = []
        for block, past in zip(self.blocks, state, strict=True):
            if self.checkpointing and self.training:
                x, past = checkpoint(block, x, past, use_reentrant=False)
            else:
                x, past = block(x, past)
            after.append(past)
        return x, tuple(after)


class FrameBuffer(NamedTuple):
    """Frames on their way into groups. Both shapes carry a number, so that the state stays on its device.

    Attributes:
        frames: [b, p, ...], the p frames of a group that is not full yet.
        before: [b, r - 1] until the first frame has come, then [b, 0].
    """

    frames: Tensor
    before: Tensor


class SpaceTimeToDepth(nn.Module):
    """Space to depth: groups of r frames and squares of s x s places become channels.

    The first frame makes the first group by itself (it is repeated), so that 1 + r k frames make 1 + k groups and a
    picture is a video of one frame.

    Args:
        time: r.
        space: s.
    """

    def __init__(self, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space

    def init_state(self, like: Tensor, batch: int, height: int, width: int, channels: int) -> FrameBuffer:
        """Before the first frame; ``like`` has the device and the dtype."""
        return FrameBuffer(like.new_zeros(batch, 0, height, width, channels), like.new_zeros(batch, self.time - 1))

    def forward(self, x: Tensor, state: FrameBuffer) -> tuple[Tensor, FrameBuffer]:
        """[b, t, h s, w s, c] -> [b, (t + p) // r, h, w, r s s c]."""
        frames, before = state
        if x.shape[1]:
            x = torch.cat((frames.to(x.dtype), x[:, :1].expand(-1, before.shape[1], -1, -1, -1), x), dim=1)
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
    """Depth to space, the way back of ``SpaceTimeToDepth``: the first group gives one frame, its last.

    The state is [b, r - 1] until the first group has come, then [b, 0]: the number of frames still to drop.
    """

    def __init__(self, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space

    def init_state(self, like: Tensor, batch: int) -> Tensor:
        """Before the first group; ``like`` has the device and the dtype."""
        return like.new_zeros(batch, self.time - 1)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """[b, t, h, w, r s s c] -> [b, t r, h s, w s, c], or r - 1 frames fewer at the start."""
        drop = before.shape[1]
        y = rearrange(x, "b t h w (r p q c) -> b (t r) (h p) (w q) c", r=self.time, p=self.space, q=self.space)
        return (y[:, drop:], before[:, :0]) if x.shape[1] else (y, before)
