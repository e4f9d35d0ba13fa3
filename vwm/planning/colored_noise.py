"""Noise with a memory, from which action sequences are drawn.

Independent noise cancels itself out: after h steps it has gone as far as the square root of h. Noise with more power
in its low frequencies pushes one way for longer and gets somewhere, which is what a search over action sequences
needs (iCEM: Pinneri et al., Sample-efficient Cross-Entropy Method for Real-time Planning, 2020, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.seeds import seeded_normal


def draw_colored_noise(seed: Tensor, samples: int, horizon: int, size: int, colour: float) -> Tensor:
    """Gaussian noise over time, of which the power falls with the frequency f as 1 / f^colour.

    White noise is filtered in the Fourier domain. It is drawn twice as long as needed and cut, since a filtered series
    is periodic: its end would lean on its beginning.

    Args:
        seed: int64 [b]; every problem's noise is a function of its own.
        samples: sequences a problem, k.
        horizon: steps, h.
        size: numbers a step, a.
        colour: 0 is white noise, 1 pink, 2 red (a random walk's).

    Returns:
        float32 [b, k, h, a]; each number standard normal, whatever the colour.
    """
    if colour == 0:
        return seeded_normal(seed, samples, horizon, size)
    length = 2 * horizon
    frequency = torch.fft.rfftfreq(length, device=seed.device)
    frequency[0] = frequency[1]  # the mean has as much power as the slowest wave
    gain = frequency ** (-colour / 2)
    # A wave and its mirror image carry the variance, but for the mean and the fastest wave, which have none.
    power = torch.cat((gain, gain[1:-1])).square().mean()
    spectrum = torch.fft.rfft(seeded_normal(seed, samples, length, size), dim=2) * (gain / power.sqrt())[:, None]
    return torch.fft.irfft(spectrum, n=length, dim=2)[:, :, :horizon]
