"""The autoencoder of LTX-Video (arXiv 2501.00103). Its published decoders are not causal: see ``decoder_is_causal``.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models import normalization
from diffusers.models.autoencoders import autoencoder_kl_ltx as diffusers_ltx
from einops import rearrange
from torch import Tensor, nn

from vwm.nn.precision import at_least_float32
from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer


class StreamingLTXConv(StreamingLayer, diffusers_ltx.LTXVideoCausalConv3d):
    """A convolution, causal or over the frames of the whole clip; copies of its first frame precede a clip."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        kernel = self.kernel_size[0]
        if not self.is_causal:
            return diffusers_ltx.LTXVideoCausalConv3d.forward(self, x)
        if kernel > 1:
            x = stream.with_past(x, keep=kernel - self.conv.stride[0], initial=kernel - 1, fill="first")
        return self.conv(x)


class StreamingLTXDownsampler(StreamingLayer, diffusers_ltx.LTXVideoDownsampler3d):
    """Moves blocks to channels, plus their means; the clip's first frame is repeated to fill its block."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        if stream.is_first:
            x = torch.cat((x[:, :, : self.stride[0] - 1], x), dim=2)
        long, short = (self._to_channels(y) for y in (self.conv(x), x))
        return long + short.unflatten(1, (-1, self.group_size)).mean(dim=2)

    def _to_channels(self, x: Tensor) -> Tensor:
        r, p, q = self.stride
        return rearrange(x, "b c (t r) (h p) (w q) -> b (c r p q) t h w", r=r, p=p, q=q)


class StreamingLTXUpsampler(StreamingLayer, diffusers_ltx.LTXVideoUpsampler3d):
    """Moves channels to blocks; of the clip's first block, the last frame remains."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        r, p, q = self.stride
        y = self._to_space(self.conv(x))
        if self.residual:
            y = y + self._to_space(x).repeat(1, r * p * q // self.upscale_factor, 1, 1, 1)
        return y[:, :, r - 1 :] if stream.is_first else y

    def _to_space(self, x: Tensor) -> Tensor:
        r, p, q = self.stride
        return rearrange(x, "b (c r p q) t h w -> b c (t r) (h p) (w q)", r=r, p=p, q=q)


class StreamingLTXNorm(StreamingLayer, normalization.RMSNorm):
    """The norm in the type of its input: diffusers' own goes through float32, which rounds float64."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalize the last dimension."""
        square = at_least_float32(x).square().mean(-1, keepdim=True)
        y = x * torch.rsqrt(square + self.eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)


class LTXVideoAdapter(VideoVAEAdapter):
    """``AutoencoderKLLTXVideo``. Decoders with a time step run at 0, which diffusers' pipelines take by default."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_ltx.LTXVideoCausalConv3d: StreamingLTXConv,
        diffusers_ltx.LTXVideoDownsampler3d: StreamingLTXDownsampler,
        diffusers_ltx.LTXVideoUpsampler3d: StreamingLTXUpsampler,
        normalization.RMSNorm: StreamingLTXNorm,
    }

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for a decoder that adds noise, an encoder that is not causal, or patches in time."""
        if any(settings.get("decoder_inject_noise") or ()):
            raise ValueError("decoder_inject_noise: this AutoencoderKLLTXVideo adds noise, so that it is no function")
        if not settings.get("encoder_causal", True):
            raise ValueError("encoder_causal=False: the latents of this AutoencoderKLLTXVideo depend on later frames")
        if settings.get("patch_size_t", 1) != 1:
            raise ValueError(f"patch_size_t={settings['patch_size_t']} must be 1: the first latent holds one frame")

    def decoder_is_causal(self, settings: Mapping[str, Any]) -> bool:
        """See ``VideoVAEAdapter``."""
        return bool(settings["decoder_causal"])

    def compression(self, vae: Any) -> tuple[int, int]:
        """See ``VideoVAEAdapter``."""
        return int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio)

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """See ``VideoVAEAdapter``."""
        return vae.latents_mean[None], vae.latents_std[None] / vae.config["scaling_factor"]

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.encoder(video).chunk(2, dim=1)[0]

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.decoder(z, z.new_zeros(len(z)) if vae.config["timestep_conditioning"] else None)
