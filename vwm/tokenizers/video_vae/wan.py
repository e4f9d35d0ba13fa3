"""Wan's autoencoders (arXiv 2503.20314): 2.1, and 2.2 with residual blocks and patches.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as diffusers_wan
from einops import rearrange
from torch import Tensor, nn

from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.stream import PlainUpsample, Stream, StreamingLayer, convolve


class StreamingWanConv(StreamingLayer, diffusers_wan.WanCausalConv3d):
    """A causal convolution; zeros precede the clip."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t, h, w]."""
        frames = self._padding[4]
        return convolve(self, stream.with_past(x, frames), *self._padding[:4])


class StreamingWanUpsample(PlainUpsample, diffusers_wan.WanUpsample):
    """Enlarges frames."""


class StreamingWanResample(StreamingLayer, diffusers_wan.WanResample):
    """Changes the resolution in space and time. The clip's first frame keeps its place in time."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        if self.mode == "upsample3d":
            x = self._double_frames(stream, x)
        frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
        return self._halve_frames(stream, x) if self.mode == "downsample3d" else x

    def _double_frames(self, stream: Stream, x: Tensor) -> Tensor:
        # The convolution does not see the first frame, not even as the past of the second one.
        alone = x[:, :, : int(stream.is_first)]
        x = stream.with_past(x[:, :, alone.shape[2] :], 2)
        if x.shape[2] == 2:
            return alone
        pairs = rearrange(convolve(self.time_conv, x), "b (n c) t h w -> b c (t n) h w", n=2)
        return torch.cat((alone, pairs), dim=2)

    def _halve_frames(self, stream: Stream, x: Tensor) -> Tensor:
        alone = x[:, :, : int(stream.is_first)]
        x = stream.with_past(x, 1, initial=0)
        return alone if x.shape[2] == 1 else torch.cat((alone, convolve(self.time_conv, x)), dim=2)


class WanAdapter(VideoVAEAdapter):
    """``AutoencoderKLWan``."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_wan.WanCausalConv3d: StreamingWanConv,
        diffusers_wan.WanUpsample: StreamingWanUpsample,
        diffusers_wan.WanResample: StreamingWanResample,
    }

    def channels(self, settings: Mapping[str, Any]) -> int:
        """See ``VideoVAEAdapter``."""
        return int(settings["z_dim"])

    def compression(self, vae: Any) -> tuple[int, int]:
        """See ``VideoVAEAdapter``."""
        halvings = len(vae.config["dim_mult"]) - 1
        return 2 ** sum(vae.config["temperal_downsample"][:halvings]), 2**halvings * (vae.config["patch_size"] or 1)

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        p = vae.config["patch_size"] or 1
        video = rearrange(video, "b c t (h p) (w q) -> b (c q p) t h w", p=p, q=p)
        return vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)[0]

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        p = vae.config["patch_size"] or 1
        video = vae.decoder(vae.post_quant_conv(z), first_chunk=stream.is_first)
        return rearrange(video, "b (c q p) t h w -> b c t (h p) (w q)", p=p, q=p).clamp(-1, 1)
