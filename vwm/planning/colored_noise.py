"""Noise that is correlated over time, from which action sequences are drawn.

The sum of h steps of independent noise grows with the square root of h only. Noise with more power at low frequencies
keeps its direction for longer and reaches states further away, which a search over action sequences needs (iCEM:
Pinneri et al., Sample-efficient Cross-Entropy Method for Real-time Planning, 2020, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.seeds import seeded_normal


def draw_colored_noise(seed: Tensor, samples: int, horizon: int, size: int, exponent: float) -> Tensor:
    """Draw Gaussian noise over time whose power spectrum falls with the frequency f as 1 / f^exponent.

    White noise is filtered in the Fourier domain. Twice the needed length is drawn and cut, because a filtered series
    is periodic: its end would be correlated with its beginning.

    Args:
        seed: int64 [b], one per problem; the noise of a problem depends on its own seed alone.
        samples: sequences per problem, k.
        horizon: steps, h.
        size: values per step, a.
        exponent: 0 is white noise, 1 pink, 2 red (that of a random walk).

    Returns:
        float32 [b, k, h, a]; each value is standard normal for every exponent.
    """
    if exponent == 0:
        return seeded_normal(seed, samples, horizon, size)
    length = 2 * horizon
    frequency = torch.fft.rfftfreq(length, device=seed.device)
    frequency[0] = frequency[1]  # the mean gets as much power as the lowest frequency
    gain = frequency ** (-exponent / 2)
    # Every frequency counts twice in the variance (with its conjugate), except the mean and the highest one.
    power = torch.cat((gain, gain[1:-1])).square().mean()
    spectrum = torch.fft.rfft(seeded_normal(seed, samples, length, size), dim=2) * (gain / power.sqrt())[:, None]
    return torch.fft.irfft(spectrum, n=length, dim=2)[:, :, :horizon]
