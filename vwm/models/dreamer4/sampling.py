"""Sample the next latent of Dreamer 4 in PyTorch by a few large steps (shortcut models, arXiv 2410.12557).

Past frames get a little noise, the same in all sampling steps of a frame, so that their keys and values are computed
once for each frame.

Legend: b batch, s past frames, n latent tokens of a frame, c their channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.frame_window import FrameWindow
from vwm.models.dreamer4.network import Dreamer4Dynamics, Noising

MIN_NOISE_SHARE = 1e-4


class Dreamer4Sampling(NamedTuple):
    """Settings for sampling frames.

    Attributes:
        steps: number of sampling steps, a power of two.
        context_noise: share of noise in past frames.
        warm_start: share of the latent before in the noise that sampling begins with, at most 1 / 2; steps that end at
            or below this share of signal are left out.
    """

    steps: int = 2
    context_noise: float = 0.0
    warm_start: float = 0.0


def check_dreamer4_sampling(network: Dreamer4Dynamics, sampling: Dreamer4Sampling) -> None:
    """Raise ValueError where a setting does not fit the network."""
    allowed = [2**power for power in range(network.signal_levels.bit_length())]
    if sampling.steps not in allowed:
        raise ValueError(f"sampling.steps={sampling.steps} must be one of {allowed}, the step sizes of this network")
    if not 0 <= sampling.context_noise < 1 or not 0 <= sampling.warm_start <= 0.5:
        raise ValueError(f"sampling.context_noise must be below 1 and sampling.warm_start at most 0.5, got {sampling}")


class SampledLatent(NamedTuple):
    """A new latent, float [b, 1, n, c], and the agent tokens of the last sampling step, float [b, k, d]."""

    latent: Tensor
    agents: Tensor


def sample_shortcut(
    network: Dreamer4Dynamics,
    past: FrameWindow,
    action: Tensor,
    noise: Tensor,
    context_noise: Tensor,
    sampling: Dreamer4Sampling,
) -> SampledLatent:
    """Sample the latent after the past ones.

    Args:
        network: predicts clean latents.
        past: the frames before it, ``network.window - 1`` of them.
        action: float [b, a], that leads to it, as the network takes it.
        noise: to begin with, float [b, 1, n, c].
        context_noise: noise of the past frames, float [b, s, 1, n, c].
        sampling: see there.
    """
    share, levels = sampling.context_noise, network.signal_levels
    noisy = (1 - share) * past.latents + share * context_noise
    context = _noising(past.known, min(round((1 - share) * levels), network.clean_signal), levels)
    keys = network.encode_past(noisy, context, past.actions, past.known)
    known, agents = past.known_with_next, None
    x = (1 - sampling.warm_start) * noise + sampling.warm_start * past.latents[:, -1]
    for number in range(sampling.steps):
        tau = number / sampling.steps
        if tau + 1 / sampling.steps <= sampling.warm_start:
            continue
        noising = _noising(known[:, -1:], number * levels // sampling.steps, sampling.steps)
        clean, agents = network.predict(keys, x[:, None], noising, action[:, None], known)
        velocity = (clean[:, 0].to(x.dtype) - x) / max(MIN_NOISE_SHARE, 1 - tau)
        x = x + velocity / sampling.steps
    assert agents is not None, "the last step ends at 1, above every warm start"
    return SampledLatent(x, agents[:, 0])


def clean_frames(network: Dreamer4Dynamics, frames: Tensor) -> Noising:
    """Return that no frame is noisy, for frames [b, t]."""
    return _noising(frames, network.clean_signal, network.signal_levels)


def _noising(frames: Tensor, signal: int, steps: int) -> Noising:
    """The same noise for all frames [b, t]."""
    size, device = frames.shape, frames.device
    return Noising(
        torch.full(size, signal, dtype=torch.int64, device=device),
        torch.full(size, steps.bit_length() - 1, dtype=torch.int64, device=device),
    )
