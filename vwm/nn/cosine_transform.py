"""Discrete cosine basis of small blocks of video, which gives a linear autoencoder without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def video_dct_basis(frames: int, side: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` DCT vectors with the most variance in natural video, for blocks of r frames and s x s RGB.

    They belong to the three-dimensional discrete cosine transform of luma and two chroma components. The variance of
    natural video falls with the square of the frequency and is smaller for chroma.

    Args:
        frames: r.
        side: s.
        count: number of vectors, at most r s s 3.

    Returns:
        An orthonormal basis float64 [count, r s s 3] (in the channel order of ``SpaceTimeToDepth``), and the expected
        standard deviation of each coefficient, float64 [count].
    """
    color = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    color = color / color.norm(dim=1, keepdim=True)
    time_frequency = torch.arange(frames) / frames
    frequency = torch.arange(side) / side
    # In cycles: a change over one frame weighs as much as a shift by two pixels.
    radius = 16 * time_frequency[:, None, None].square() + 64 * (frequency[:, None].square() + frequency.square())
    power = torch.tensor([1.0, 0.15, 0.05]) / (1 + radius[..., None])
    best = power.flatten().argsort(descending=True, stable=True)[:count]
    # Not by torch.unravel_index, which imports sympy.
    t, y, x, c = best // (3 * side**2), best // (3 * side) % side, best // 3 % side, best % 3
    time, space = _dct_matrix(frames), _dct_matrix(side)
    basis = torch.einsum("kr,kp,kq,kc->krpqc", time[t], space[y], space[x], color[c]).flatten(1)
    # The standard deviation of pixels in [-1, 1] is about 0.5.
    scale = 0.5 * math.sqrt(power.numel()) / power.sum().double().sqrt()
    return basis, power.flatten()[best].double().sqrt() * scale


def _dct_matrix(length: int) -> Tensor:
    """Orthonormal DCT-II, float64 [frequency, position]."""
    position = torch.arange(length, dtype=torch.float64)
    frequency = torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi / length * (position + 0.5) * frequency[:, None]) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves
