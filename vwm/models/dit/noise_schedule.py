"""The way from noise to data, and what a network says of a point on it.

The signal level tau runs from 0 (noise) to 1 (data), a level a frame (diffusion forcing, arXiv 2407.01392). What the
network predicts decides the way:

- ``velocity``: the straight way, tau * clean + (1 - tau) * noise, and its direction clean - noise (flow matching,
  arXiv 2210.02747);
- ``clean``: the same way, and its end (Dreamer 4, arXiv 2509.24527, section 3.2);
- ``v``: the variance-preserving way, sin(pi/2 tau) * clean + cos(pi/2 tau) * noise, and v = sin * noise - cos * clean
  (Salimans and Ho, arXiv 2202.00512, appendix D).

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
    """The shares of data and of noise at a signal level: [b, t] -> two of [b, t, 1, 1, 1]."""
    signal = signal.to(like.dtype)[..., None, None, None]
    if kind == "v":
        return torch.sin(signal * (math.pi / 2)), torch.cos(signal * (math.pi / 2))
    return signal, 1 - signal


def add_noise(kind: PredictionType, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """The point of the way at a signal level: [b, t, h, w, c]."""
    alpha, sigma = alpha_sigma(kind, signal, clean)
    return alpha * clean + sigma * noise


def prediction_target(kind: PredictionType, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """What the network should say there."""
    if kind == "velocity":
        return clean - noise
    if kind == "clean":
        return clean
    alpha, sigma = alpha_sigma(kind, signal, clean)
    return alpha * noise - sigma * clean


def predicted_clean_and_noise(
    kind: PredictionType, x: Tensor, prediction: Tensor, signal: Tensor
) -> tuple[Tensor, Tensor]:
    """Clean data and noise, as a prediction at x implies them."""
    alpha, sigma = alpha_sigma(kind, signal, x)
    if kind == "velocity":
        return x + sigma * prediction, x - alpha * prediction
    if kind == "clean":
        return prediction, (x - alpha * prediction) / sigma
    return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def sampler_step(kind: PredictionType, x: Tensor, prediction: Tensor, signal: Tensor, onward: Tensor) -> Tensor:
    """One sampling step, from one signal level to the next.

    On the straight way this is Euler's step along the velocity; on the other it is DDIM's (arXiv 2010.02502, eq. 12).
    """
    return add_noise(kind, *predicted_clean_and_noise(kind, x, prediction, signal), onward)


def sampling_signal_levels(steps: int, shift: float = 1.0) -> list[float]:
    """Signal levels from 0 to 1, steps + 1 of them; a ``shift`` over 1 spends more steps near the noise.

    In noise levels sigma = 1 - tau: shift * sigma / (1 + (shift - 1) * sigma) (SD3, arXiv 2403.03206, eq. 23).
    """
    noise = [1 - i / steps for i in range(steps + 1)]
    return [1 - shift * s / (1 + (shift - 1) * s) for s in noise]
