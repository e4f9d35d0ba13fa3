"""Rotary position encodings of Oasis: neighboring pairs of channels are turned by angles that positions give.

Places on the grid of a frame run from -1 to 1 along each axis, with frequencies that are multiples of pi. Frames have
the usual geometric frequencies (RoFormer, arXiv 2104.09864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_BASE = 10_000


def grid_frequencies(channels: int, highest: float, device: torch.device | None = None) -> Tensor:
    """Return float32 [channels / 2] frequencies of an axis, from pi to ``highest`` / 2 pi in equal steps."""
    return torch.linspace(1.0, highest / 2, channels // 2, dtype=torch.float32, device=device) * math.pi


def time_frequencies(channels: int, device: torch.device | None = None) -> Tensor:
    """Return float32 [channels / 2] frequencies of time, in radians per frame."""
    return 1 / TIME_BASE ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)


def grid_angles(frequencies: Tensor, height: int, width: int) -> Tensor:
    """Return angles [h w, 4 n] of the places of a grid from n frequencies: those of the row, then of the column."""
    rows, columns = (
        _paired_angles(torch.linspace(-1, 1, side, device=frequencies.device, dtype=torch.float32), frequencies)
        for side in (height, width)
    )
    angles = torch.cat((rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)), dim=-1)
    return angles.flatten(0, 1)


def time_angles(frequencies: Tensor, frames: int) -> Tensor:
    """Return angles [t, 2 n] of frames 0, 1, ... from n frequencies."""
    return _paired_angles(torch.arange(frames, device=frequencies.device), frequencies)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first channels of x [..., n, d] by angles [n, r], r <= d; the rest stays as it is."""
    turned, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    quarter = torch.stack((-second, first), dim=-1).flatten(-2)
    return torch.cat(((turned * angles.cos() + quarter * angles.sin()).to(x.dtype), rest), dim=-1)


def _paired_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """[m], [n] -> [m, 2 n], each angle for a pair of channels."""
    return (positions.to(frequencies.dtype)[:, None] * frequencies).repeat_interleave(2, dim=-1)
