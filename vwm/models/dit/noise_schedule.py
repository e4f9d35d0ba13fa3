"""Interpolation between noise and data, and the prediction types of the network.

The signal level tau runs from 0 (noise) to 1 (data), one level per frame (diffusion forcing, arXiv 2407.01392). The
prediction type determines the interpolation:

- ``velocity``: linear, tau * clean + (1 - tau) * noise, and the prediction is clean - noise (flow matching,
  arXiv 2210.02747);
- ``clean``: the same interpolation, and the prediction is clean (Dreamer 4, arXiv 2509.24527, section 3.2);
- ``v``: variance-preserving, sin(pi/2 tau) * clean + cos(pi/2 tau) * noise, and the prediction is
  sin * noise - cos * clean (Salimans and Ho, arXiv 2202.00512, appendix D).

Legend: b batch, t time, h w c of the latents. Levels are [b, t].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["velocity", "clean", "v"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("velocity", "clean", "v")


def alpha_sigma(kind: PredictionType, signal: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of data and noise at a signal level: [b, t] -> two of [b, t, 1, 1, 1] in the dtype of ``like``."""
    signal = signal.to(like.dtype)[..., None, None, None]
    if kind == "v":
        return torch.sin(signal * (math.pi / 2)), torch.cos(signal * (math.pi / 2))
    return signal, 1 - signal


def add_noise(kind: PredictionType, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """Interpolate between noise and data at a signal level: [b, t, h, w, c]."""
    alpha, sigma = alpha_sigma(kind, signal, clean)
    return alpha * clean + sigma * noise


def prediction_target(kind: PredictionType, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """Target of the prediction at a signal level: [b, t, h, w, c]."""
    if kind == "velocity":
        return clean - noise
    if kind == "clean":
        return clean
    alpha, sigma = alpha_sigma(kind, signal, clean)
    return alpha * noise - sigma * clean


def predicted_clean_and_noise(
    kind: PredictionType, x: Tensor, prediction: Tensor, signal: Tensor
) -> tuple[Tensor, Tensor]:
    """Clean data and noise that a prediction at x implies, each [b, t, h, w, c]."""
    alpha, sigma = alpha_sigma(kind, signal, x)
    if kind == "velocity":
        return x + sigma * prediction, x - alpha * prediction
    if kind == "clean":
        return prediction, (x - alpha * prediction) / sigma
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def sampler_step(kind: PredictionType, x: Tensor, prediction: Tensor, signal: Tensor, next_signal: Tensor) -> Tensor:
    """One sampling step, from one signal level to the next.

    For the linear interpolation this is an Euler step along the velocity; for ``v`` it is a DDIM step (arXiv
    2010.02502, eq. 12).
    """
    return add_noise(kind, *predicted_clean_and_noise(kind, x, prediction, signal), next_signal)


def sampling_signal_levels(steps: int, shift: float = 1.0) -> list[float]:
    """The steps + 1 signal levels from 0 to 1; a ``shift`` above 1 spends more steps at high noise.

    In noise levels sigma = 1 - tau: shift * sigma / (1 + (shift - 1) * sigma) (SD3, arXiv 2403.03206, eq. 23).
    """
    sigmas = [1 - i / steps for i in range(steps + 1)]
    return [1 - shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]
