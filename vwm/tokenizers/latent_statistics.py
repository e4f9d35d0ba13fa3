"""Measure the mean and scale of continuous latents. Legend: b batch, t time, H W pixels, c channels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float
from vwm.core.tokenizer import VideoTokenizer


@torch.no_grad()
def measure_latent_statistics(tokenizer: VideoTokenizer, clips: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Measure mean and standard deviation of each channel, and let ``encode`` normalize by them.

    They are stored in the config of the tokenizer as ``latents_mean`` and ``latents_std``.

    Args:
        tokenizer: a tokenizer with continuous latents and these two values in its config. Others are not changed:
            tokens have no scale, and pixels and published autoencoders have their own statistics.
        clips: uint8 [b, t, H, W, 3]; last frames that do not fill a latent are dropped.

    Returns:
        Means and standard deviations, in the scale of the network; empty lists for a tokenizer that was not changed.

    Raises:
        ValueError: there are no clips.
    """
    if not tokenizer.channels or "latents_mean" not in tokenizer.config:
        return [], []
    training, device = tokenizer.training, tokenizer.mean.device
    total = squares = torch.zeros(tokenizer.channels, dtype=torch.float64, device=device)
    count = 0
    tokenizer.eval()
    for clip in clips:
        frames = (clip.shape[1] - 1) // tokenizer.time_compression * tokenizer.time_compression + 1
        latents = tokenizer.encode(frames_to_float(clip[:, :frames].to(device))).double().flatten(0, -2)
        total, squares, count = total + latents.sum(0), squares + latents.square().sum(0), count + len(latents)
    tokenizer.train(training)
    if not count:
        raise ValueError("there are no clips to measure the latents on")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-4).sqrt()  # limits the scale of unused channels
    # The measured latents were already normalized by the previous values.
    tokenizer.mean.copy_(tokenizer.mean + mean * tokenizer.std)
    tokenizer.std.mul_(std)
    latents_mean, latents_std = tokenizer.mean.tolist(), tokenizer.std.tolist()
    tokenizer.register_to_config(latents_mean=latents_mean, latents_std=latents_std)
    return latents_mean, latents_std
