"""Reconstructions of clips, the upper bound of rollout quality, and their latents.

Legend: n clips, t time, h w the grid of latents, c channels, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.capabilities import DecodesLatents, EncodesFrames
from vwm.core.command_output import progress_bar
from vwm.core.simulator import Simulator


class ReconstructedClips(NamedTuple):
    """Clips that a simulator encoded and decoded, without dynamics.

    Attributes:
        frames: uint8 [n, t, H, W, 3].
        latents: tokens int64 [n, t, h, w], or float [n, t, ...]; None for simulators without latents.
    """

    frames: Tensor
    latents: Tensor | None


@torch.inference_mode()
def reconstruct_clips(simulator: Simulator, frames: Tensor, batch_size: int) -> ReconstructedClips:
    """Encode and decode clips, uint8 [n, t, H, W, 3], on the simulator's device; results are on the frames' device.

    For a simulator without decodable latents, the frames are returned unchanged.
    """
    if not (isinstance(simulator, EncodesFrames) and isinstance(simulator, DecodesLatents)):
        return ReconstructedClips(frames, None)
    shown, latents = [], []
    for batch in progress_bar(frames.split(batch_size), desc="tokenizer", unit="batch"):
        code = simulator.encode(batch)
        shown.append(simulator.decode(code).to(frames.device))
        latents.append(code.to(frames.device))
    return ReconstructedClips(torch.cat(shown), torch.cat(latents))


def mean_image(frames: Tensor) -> Tensor:
    """Return the mean image of clips, in their shape uint8 [n, t, H, W, 3]: the prediction that needs no model."""
    total = sum(clip.double().sum(dim=0) for clip in frames)
    mean = torch.as_tensor(total) / (frames.shape[0] * frames.shape[1])
    return mean.round().byte().expand_as(frames)
