"""The autoencoder of Cosmos (arXiv 2501.03575): patches of a wavelet transform, and attention to all past frames.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_cosmos as diffusers_cosmos
from einops import rearrange, reduce
from torch import Tensor, nn

from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer, attend_to_past, convolve


class StreamingCosmosConv(StreamingLayer, diffusers_cosmos.CosmosCausalConv3d):
    """A causal convolution; copies of the first frame precede the clip."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        x = stream.with_past(x, self.temporal_pad, fill="first")
        return convolve(self, x, *self.spatial_pad, mode=self.pad_mode)


class StreamingCosmosPatches(StreamingLayer, diffusers_cosmos.CosmosPatchEmbed3d):
    """Moves blocks of frames and pixels to channels; the clip's first frame is repeated to fill its block."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c p³, t', h', w']."""
        p = self.patch_size
        if stream.is_first:
            x = torch.cat((x[:, :, :1].expand(-1, -1, p - 1, -1, -1), x), dim=2)
        if self.patch_method == "rearrange":
            return rearrange(x, "b c (t r) (h p) (w q) -> b (c r p q) t h w", r=p, p=p, q=p)
        for _ in range(p.bit_length() - 1):
            x = self._dwt(x, rescale=True)
        return x


class StreamingCosmosUnpatches(StreamingLayer, diffusers_cosmos.CosmosUnpatcher3d):
    """The inverse of ``StreamingCosmosPatches``."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c p³, t', h', w'] -> [b, c, t, h, w]."""
        p = self.patch_size
        if self.patch_method == "rearrange":
            x = rearrange(x, "b (c r p q) t h w -> b c (t r) (h p) (w q)", r=p, p=p, q=p)
        else:
            for _ in range(p.bit_length() - 1):
                x = self._idwt(x, rescale=True)
        return x[:, :, p - 1 :] if stream.is_first else x


class StreamingCosmosDownsample(StreamingLayer, diffusers_cosmos.CosmosDownsample3d):
    """Halves the resolution by a convolution and an average; the clip's first frame is repeated to fill its pair."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c, t', h', w']."""
        if self.spatial_downsample:
            mean = reduce(x, "b c t (h p) (w q) -> b c t h w", "mean", p=2, q=2)
            x = self.conv1(F.pad(x, (0, 1, 0, 1))) + mean
        if self.temporal_downsample:
            x = torch.cat((x[:, :, :1], x), dim=2) if stream.is_first else x
            x = self.conv2(x) + reduce(x, "b c (t r) h w -> b c t h w", "mean", r=2)
        return self.conv3(x)


class StreamingCosmosUpsample(StreamingLayer, diffusers_cosmos.CosmosUpsample3d):
    """Doubles the resolution. The clip's first frame is not doubled in time."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c, t', h', w']."""
        if self.temporal_upsample:
            x = x.repeat_interleave(2, dim=2)[:, :, int(stream.is_first) :]
            x = self.conv1(x) + x
        if self.spatial_upsample:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        return self.conv3(x)


class StreamingCosmosAttention(StreamingLayer, diffusers_cosmos.CosmosCausalAttention):
    """Attention over the positions of a frame, or over the past frames at a position."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> the same shape."""
        if not isinstance(self.processor, diffusers_cosmos.CosmosTemporalAttentionProcessor2_0):
            return self.processor(self, x)
        normed, batch, height = self.norm(x), x.shape[0], x.shape[3]
        query, key, value = (
            rearrange(features, "b c t h w -> (b h w) t c")
            for features in (
                self.to_q(normed),
                stream.with_all_past(self.to_k(normed)),
                stream.with_all_past(self.to_v(normed)),
            )
        )
        mixed = attend_to_past(query, key, value, frames=x.shape[2], heads=self.num_attention_heads)
        return x + self.to_out[0](rearrange(mixed, "(b h w) t c -> b c t h w", b=batch, h=height))


class CosmosAdapter(VideoVAEAdapter):
    """``AutoencoderKLCosmos``."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_cosmos.CosmosCausalConv3d: StreamingCosmosConv,
        diffusers_cosmos.CosmosPatchEmbed3d: StreamingCosmosPatches,
        diffusers_cosmos.CosmosUnpatcher3d: StreamingCosmosUnpatches,
        diffusers_cosmos.CosmosDownsample3d: StreamingCosmosDownsample,
        diffusers_cosmos.CosmosUpsample3d: StreamingCosmosUpsample,
        diffusers_cosmos.CosmosCausalAttention: StreamingCosmosAttention,
    }

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.quant_conv(vae.encoder(video))

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.decoder(vae.post_quant_conv(z))
