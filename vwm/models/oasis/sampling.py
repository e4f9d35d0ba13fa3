"""Sample the next latent of Oasis by DDIM (arXiv 2010.02502) from the frames before it.

Past frames count as frames with a little noise, though none is added (the stabilization of diffusion forcing), and
their keys and values are the same in every sampling step: they are computed once for each frame.

Legend: b batch, s past frames, h w c of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.frame_window import FrameWindow
from vwm.models.oasis.network import OasisDiT

NOISE_LEVELS = 1000


class OasisSampling(NamedTuple):
    """Settings for sampling frames, with the published defaults.

    Attributes:
        steps: number of DDIM steps.
        stabilization: noise level, in thousandths, that past frames count as having.
    """

    steps: int = 10
    stabilization: int = 15


def check_oasis_sampling(sampling: OasisSampling) -> None:
    """Raise ValueError where a setting is out of range."""
    for name, value in sampling._asdict().items():
        if type(value) is not int or not 1 <= value <= NOISE_LEVELS:
            raise ValueError(f"sampling.{name} must be a whole number in 1..{NOISE_LEVELS}, got {value!r}")


def sample_next_latent(
    network: OasisDiT, past: FrameWindow, action: Tensor, noise: Tensor, sampling: OasisSampling
) -> Tensor:
    """Sample the latent after the past ones.

    Args:
        network: predicts v.
        past: the frames before it, at most ``network.window - 1``; actions as the network takes them.
        action: float [b, a], that leads to it.
        noise: to begin with, float [b, h, w, c].
        sampling: see ``OasisSampling``.

    Returns:
        Float [b, h, w, c].
    """
    level = torch.full(past.known.shape, sampling.stabilization - 1, dtype=torch.int64, device=noise.device)
    keys = network.encode_past(past.latents, level, past.actions, past.known)

    def predict(x: Tensor, level: int) -> Tensor:
        levels = torch.full((len(x), 1), level, dtype=torch.int64, device=x.device)
        return network.predict(keys, x[:, None], levels, action[:, None], past.known_with_next)[:, 0].to(x.dtype)

    return ddim(predict, noise, sampling.steps)


def ddim(predict: Callable[[Tensor, int], Tensor], x: Tensor, steps: int) -> Tensor:
    """Denoise x from the highest level to the clean data; ``predict(x, level)`` returns v."""
    levels = [NOISE_LEVELS * number // steps - 1 for number in range(steps + 1)]
    for number in range(steps, 0, -1):
        signal, noise, inverse_signal, inverse_noise = LEVEL_FACTORS[levels[number]]
        v = predict(x, levels[number])
        clean = signal * x - noise * v
        if number == 1:
            return clean
        predicted_noise = (inverse_signal * x - clean) / inverse_noise
        signal, noise, _, _ = LEVEL_FACTORS[levels[number - 1]]
        x = signal * clean + noise * predicted_noise
    return x


def signal_shares(start: float = -3.0, end: float = 3.0) -> Tensor:
    """Return the share of the signal's variance at each noise level, float32 [1000].

    The schedule follows a sigmoid from ``start`` to ``end`` (arXiv 2212.11972, figure 8).
    """
    t = torch.linspace(0, NOISE_LEVELS, NOISE_LEVELS + 1, dtype=torch.float64) / NOISE_LEVELS
    low, high = torch.tensor([start, end], dtype=torch.float32).sigmoid()  # rounded as in the published code
    shares = (high - (t * (end - start) + start).sigmoid()) / (high - low)
    betas = (1 - shares[1:] / shares[:-1]).clip(0, 0.999)
    return (1 - betas.float()).cumprod(0)


def _level_factors() -> list[list[float]]:
    """Return four factors of each noise level: of signal and noise, and two of the noise that v implies."""
    shares = signal_shares()
    inverse = 1 / shares
    return torch.stack((shares, 1 - shares, inverse, inverse - 1), dim=1).sqrt().tolist()


LEVEL_FACTORS = _level_factors()
