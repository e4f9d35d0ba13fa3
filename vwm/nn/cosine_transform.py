"""The cosine basis of small blocks of video: a linear autoencoder that needs no training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def video_dct_basis(frames: int, side: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` waves that hold most of a natural video's variance, of blocks of r frames and s x s RGB pixels.

    The three-dimensional discrete cosine transform of brightness and two colour differences, sorted by the power that
    natural videos have: it falls with the square of the frequency and is small in colour.

    Args:
        frames: r.
        side: s.
        count: how many, at most r s s 3.

    Returns:
        An orthonormal basis float64 [count, r s s 3] (the order of ``Merge``'s channels), and the deviation expected of
        each coefficient, float64 [count].
    """
    colour = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colour = colour / colour.norm(dim=1, keepdim=True)
    turn, wave = torch.arange(frames) / frames, torch.arange(side) / side
    # In cycles: a frame of change weighs as much as two pixels of shift.
    radius = 16 * turn[:, None, None].square() + 64 * (wave[:, None].square() + wave.square())
    power = torch.tensor([1.0, 0.15, 0.05]) / (1 + radius[..., None])
    best = power.flatten().argsort(descending=True, stable=True)[:count]
    t, y, x, c = torch.unravel_index(best, power.shape)
    time, space = _dct_matrix(frames), _dct_matrix(side)
    basis = torch.einsum("kr,kp,kq,kc->krpqc", time[t], space[y], space[x], colour[c]).flatten(1)
    # Pixels in [-1, 1] deviate by about a half.
    scale = 0.5 * math.sqrt(power.numel()) / power.sum().double().sqrt()
    return basis, power.flatten()[best].double().sqrt() * scale


def _dct_matrix(length: int) -> Tensor:
    """Orthonormal DCT-II, float64 [frequency, place]."""
    place, frequency = torch.arange(length, dtype=torch.float64), torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi / length * (place + 0.5) * frequency[:, None]) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves
