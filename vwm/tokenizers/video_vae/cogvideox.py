"""CogVideoX's autoencoder (arXiv 2408.06072).

Its group norms normalize over all frames that are processed together, so that results depend on how a clip is divided.
diffusers divides it into passes of two latents, of which the first also takes the remainder. That depends on the length
of the clip, which a stream does not know, and would delay frames. Here the frames of each latent are normalized by
themselves, as in passes of one latent: the first frame, then four frames each.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models import upsampling
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as diffusers_cogvideox
from einops import rearrange
from torch import Tensor, nn

from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.group_norm import StreamingGroupNorm
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer


class StreamingCogVideoXConv(StreamingLayer, diffusers_cogvideox.CogVideoXCausalConv3d):
    """A causal convolution; copies of the first frame precede the clip."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """[b, c, t, h, w] -> [b, c', t, h, w], and None in place of diffusers' own cache."""
        return self.conv(stream.with_past(x, self.time_pad, fill="first")), None


class StreamingCogVideoXNorm(StreamingLayer, diffusers_cogvideox.CogVideoXSpatialNorm3D):
    """A group norm with scale and shift from the latents, which are enlarged to the size of the features."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, None]]:
        """[b, c, t, h, w] -> the same shape, given the latents [b, c', t', h', w']."""
        z: Tensor = args[0] if args else kwargs["zq"]
        alone = int(stream.is_first)
        parts = [F.interpolate(z[:, :, :alone], size=(alone, *x.shape[3:]))] if alone else []
        if x.shape[2] > alone:
            parts.append(F.interpolate(z[:, :, alone:], size=(x.shape[2] - alone, *x.shape[3:])))
        z = torch.cat(parts, dim=2)
        return self.norm_layer(x) * self.conv_y(z)[0] + self.conv_b(z)[0], {}


class StreamingCogVideoXUpsample(StreamingLayer, upsampling.CogVideoXUpsample3D):
    """Doubles the resolution. The clip's first frame is not doubled in time."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', 2 h, 2 w]."""
        if self.compress_time:
            x = torch.repeat_interleave(x, 2, dim=2)[:, :, int(stream.is_first) :]
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0)
        return rearrange(self.conv(frames), "(b t) c h w -> b c t h w", b=len(x))


class CogVideoXAdapter(VideoVAEAdapter):
    """``AutoencoderKLCogVideoX``."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_cogvideox.CogVideoXCausalConv3d: StreamingCogVideoXConv,
        diffusers_cogvideox.CogVideoXSpatialNorm3D: StreamingCogVideoXNorm,
        upsampling.CogVideoXUpsample3D: StreamingCogVideoXUpsample,
        nn.GroupNorm: StreamingGroupNorm,
    }

    def compression(self, vae: Any) -> tuple[int, int]:
        """See ``VideoVAEAdapter``."""
        halvings = len(vae.config["block_out_channels"]) - 1
        return min(int(vae.config["temporal_compression_ratio"]), 2**halvings), 2**halvings

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        features = vae.encoder(video)[0]
        if vae.quant_conv is not None:
            features = vae.quant_conv(features)
        return features.chunk(2, dim=1)[0]

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.decoder(z if vae.post_quant_conv is None else vae.post_quant_conv(z))[0]
