"""The scale of continuous latents, measured on data. Legend: b batch, t time, H W pixels, c channels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float
from vwm.core.tokenizer import VideoTokenizer


@torch.no_grad()
def measure_latent_statistics(tokenizer: VideoTokenizer, clips: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Measure mean and deviation of each channel, and make ``encode`` normalise by them from now on.

    Both go into the tokenizer's config as ``latents_mean`` and ``latents_std``, and are saved with it.

    Args:
        tokenizer: one with continuous latents and these two in its config. Others are left as they are: tokens have
            no scale, and pixels and published autoencoders bring their own.
        clips: uint8 [b, t, H, W, 3]; frames at the end that fill no latent are left out.

    Returns:
        The two, in the network's own scale; empty for a tokenizer that was left alone.

    Raises:
        ValueError: no clips.
    """
    if not tokenizer.channels or "latents_mean" not in tokenizer.config:
        return [], []
    training, device = tokenizer.training, tokenizer.mean.device
    total = squares = torch.zeros(tokenizer.channels, dtype=torch.float64, device=device)
    count = 0
    tokenizer.eval()
    for clip in clips:
        whole = (clip.shape[1] - 1) // tokenizer.time_compression * tokenizer.time_compression + 1
        latents = tokenizer.encode(frames_to_float(clip[:, :whole].to(device))).double().flatten(0, -2)
        total, squares, count = total + latents.sum(0), squares + latents.square().sum(0), count + len(latents)
    tokenizer.train(training)
    if not count:
        raise ValueError("no clips to measure the latents on")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-4).sqrt()  # a dead channel stays small
    # What was measured had already been normalised by the numbers so far.
    tokenizer.mean.copy_(tokenizer.mean + mean * tokenizer.std)
    tokenizer.std.mul_(std)
    found = tokenizer.mean.tolist(), tokenizer.std.tolist()
    tokenizer.register_to_config(latents_mean=found[0], latents_std=found[1])
    return found
