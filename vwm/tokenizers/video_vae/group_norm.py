"""Group norms of video autoencoders, which normalize over frames, so that results depend on how a clip is divided.

Legend: b batch, c channels, t time, h w space, n latents.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer


class StreamingGroupNorm(StreamingLayer, nn.GroupNorm):
    """A group norm over the frames of one latent."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> the same shape. Normalizes over all frames where the stream counts no latents."""
        alone = int(stream.is_first)
        if stream.latents is None or stream.latents == 1:
            return nn.GroupNorm.forward(self, x)
        parts = [nn.GroupNorm.forward(self, x[:, :, :alone])] if alone else []
        latents = stream.latents - alone
        rest = rearrange(x[:, :, alone:], "b c (n t) h w -> (b n) c t h w", n=latents)
        parts.append(rearrange(nn.GroupNorm.forward(self, rest), "(b n) c t h w -> b c (n t) h w", n=latents))
        return torch.cat(parts, dim=2)
