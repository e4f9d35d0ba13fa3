"""How DIAMOND samples a frame: the second-order sampler of EDM (arXiv 2206.00364, algorithm 2), or Euler steps.

Legend: b batch, n past frames, h w pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.models.diamond.denoiser import DiamondDenoiser, uniform_sigma

MAX_CHURN = math.sqrt(2) - 1
"""Largest relative increase of the noise level by churning."""

NoiseSource = Callable[[int], Tensor]
"""The standard normal noise of a draw, by its number: float [b, ...] of the frame, or of the past."""


class DiamondSampling(NamedTuple):
    """How a frame is sampled.

    Attributes:
        steps: denoising steps.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: how densely the levels lie at the low end.
        order: 1 for Euler's steps, 2 for Heun's, which denoise twice but for the last step.
        churn: noise that is added during sampling, of all steps together.
        churn_min, churn_max: noise levels at which it is added.
        churn_noise: standard deviation of that noise.
        past_noise: noise level that is added to the past frames at each step; 0 without.
    """

    steps: int = 3
    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    order: int = 1
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = 1000.0
    churn_noise: float = 1.0
    past_noise: float = 0.0


def check_diamond_sampling(denoiser: DiamondDenoiser, sampling: DiamondSampling) -> None:
    """Raise ValueError for settings that EDM's sampler or the denoiser does not support."""
    if sampling.order not in (1, 2):
        raise ValueError(f"sampling.order must be 1 (Euler) or 2 (Heun), got {sampling.order!r}")
    if not 0 < sampling.sigma_min < sampling.sigma_max or not sampling.rho > 0:
        raise ValueError(
            f"sampling needs 0 < sigma_min < sigma_max and rho > 0, got sigma_min={sampling.sigma_min}, "
            f"sigma_max={sampling.sigma_max}, rho={sampling.rho}"
        )
    if sampling.past_noise and not denoiser.noisy_past:
        raise ValueError(
            f"sampling.past_noise={sampling.past_noise}: these weights were trained without noise on past frames; set 0"
        )


def noise_levels(sampling: DiamondSampling, dtype: torch.dtype) -> NDArray[np.floating[Any]]:
    """Return the noise levels of the steps, from the highest one, and 0 at the end.

    They have the precision of frames, as in the published sampler: other rounding can end at another level of a pixel.
    They are no tensors, whose values cannot be read while a step is captured or exported.
    """
    precision: Any = np.float64 if dtype == torch.float64 else np.float32
    high, low = (precision(sigma ** (1 / sampling.rho)) for sigma in (sampling.sigma_max, sampling.sigma_min))
    shares = np.linspace(0, 1, sampling.steps, dtype=precision)
    return np.append((high + shares * (low - high)) ** precision(sampling.rho), precision(0))


def sample_frame(
    denoiser: DiamondDenoiser,
    past: Tensor,
    actions: Tensor | None,
    noise: NoiseSource,
    past_noise: NoiseSource,
    sampling: DiamondSampling,
) -> Tensor:
    """Sample a frame, float [b, 3, h, w] in [-1, 1].

    Args:
        denoiser: the network.
        past, actions: see ``DiamondDenoiser.forward``.
        noise: of the frame: draw 0 is the start, draw i + 1 the churn of step i.
        past_noise: of the past frames, draw i for step i.
        sampling: how.
    """
    levels = noise_levels(sampling, past.dtype)
    churn = min(sampling.churn / sampling.steps, MAX_CHURN)
    past_sigma = uniform_sigma(sampling.past_noise, past) if sampling.past_noise else None

    def denoise(frame: Tensor, sigma: float) -> Tensor:
        scales = denoiser.precondition(uniform_sigma(sigma, past))
        return denoiser.clean(frame, denoiser(frame, scales, past, actions, past_sigma), scales)

    frame = noise(0)
    for i, (sigma, after) in enumerate(itertools.pairwise(levels)):
        gamma = churn if sampling.churn_min <= sigma <= sampling.churn_max else 0.0
        churned = sigma * (gamma + 1)
        if gamma > 0:
            frame = frame + noise(i + 1) * sampling.churn_noise * float(np.sqrt(churned**2 - sigma**2))
        if past_sigma is not None:  # the noise of all steps adds up, as in the published sampler
            past = past + past_noise(i) * sampling.past_noise
        slope = (frame - denoise(frame, float(sigma))) / float(churned)
        following = frame + slope * float(after - churned)
        if sampling.order == 2 and after > 0:
            second = (following - denoise(following, float(after))) / float(after)
            following = frame + (slope + second) / 2 * float(after - churned)
        frame = following
    return frame
