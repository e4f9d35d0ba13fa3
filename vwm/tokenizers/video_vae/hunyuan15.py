"""The autoencoder of HunyuanVideo 1.5 (arXiv 2511.18870), with attention to all past frames at its lowest resolution.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders import autoencoder_kl_hunyuanvideo15 as diffusers_hunyuan15
from einops import rearrange
from torch import Tensor, nn

from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer, attend_to_all_frames, convolve


class StreamingHunyuan15Conv(StreamingLayer, diffusers_hunyuan15.HunyuanVideo15CausalConv3d):
    """A causal convolution; copies of the first frame precede the clip, and of the borders surround it."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t, h, w]."""
        *space, frames, _ = self.time_causal_padding
        x = stream.with_past(x, frames, fill="first")
        return convolve(self.conv, x, *space, 0, 0, mode=self.pad_mode)


class StreamingHunyuan15Attention(StreamingLayer, diffusers_hunyuan15.HunyuanVideo15AttnBlock):
    """Attention to all positions of all frames up to one's own."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> the same shape."""
        normed = self.norm(x)
        mixed = attend_to_all_frames(stream, self.to_q(normed), self.to_k(normed), self.to_v(normed))
        return x + self.proj_out(mixed)


class StreamingHunyuan15Downsample(StreamingLayer, diffusers_hunyuan15.HunyuanVideo15Downsample):
    """Halves the resolution by moving blocks to channels. The clip's first frame is a block of its own."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h / 2, w / 2]."""
        frames = 2 if self.add_temporal_downsample else 1
        features, alone = self.conv(x), int(stream.is_first) * (frames - 1)
        long = [_space_to_channels(features[:, :, alone:], frames)]
        short = [_mean_of_groups(_space_to_channels(x[:, :, alone:], frames), self.group_size)]
        if alone:
            long.insert(0, _space_to_channels(features[:, :, :1], 1).repeat(1, 2, 1, 1, 1))
            short.insert(0, _mean_of_groups(_space_to_channels(x[:, :, :1], 1), self.group_size // 2))
        return torch.cat(long, dim=2) + torch.cat(short, dim=2)


class StreamingHunyuan15Upsample(StreamingLayer, diffusers_hunyuan15.HunyuanVideo15Upsample):
    """Doubles the resolution by moving channels to blocks. The clip's first frame is not doubled in time."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', 2 h, 2 w]."""
        frames = 2 if self.add_temporal_upsample else 1
        features, alone = self.conv(x), int(stream.is_first) * (frames - 1)
        long = [_channels_to_space(features[:, :, alone:], frames)]
        short = [_channels_to_space(x[:, :, alone:], frames).repeat_interleave(self.repeats, dim=1)]
        if frames == 1:
            short = [_channels_to_space(x.repeat_interleave(self.repeats, dim=1), 1)]
        if alone:
            first = _channels_to_space(features[:, :, :1], 1)
            long.insert(0, first[:, : first.shape[1] // 2])
            short.insert(0, _channels_to_space(x[:, :, :1], 1).repeat_interleave(self.repeats // 2, dim=1))
        return torch.cat(long, dim=2) + torch.cat(short, dim=2)


class HunyuanVideo15Adapter(VideoVAEAdapter):
    """``AutoencoderKLHunyuanVideo15``."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_hunyuan15.HunyuanVideo15CausalConv3d: StreamingHunyuan15Conv,
        diffusers_hunyuan15.HunyuanVideo15AttnBlock: StreamingHunyuan15Attention,
        diffusers_hunyuan15.HunyuanVideo15Downsample: StreamingHunyuan15Downsample,
        diffusers_hunyuan15.HunyuanVideo15Upsample: StreamingHunyuan15Upsample,
    }

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.encoder(video).chunk(2, dim=1)[0]

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.decoder(z)


def _space_to_channels(x: Tensor, frames: int) -> Tensor:
    return rearrange(x, "b c (t r) (h p) (w q) -> b (r p q c) t h w", r=frames, p=2, q=2)


def _channels_to_space(x: Tensor, frames: int) -> Tensor:
    return rearrange(x, "b (r p q c) t h w -> b c (t r) (h p) (w q)", r=frames, p=2, q=2)


def _mean_of_groups(x: Tensor, size: int) -> Tensor:
    """Average groups of consecutive channels."""
    return x.unflatten(1, (-1, size)).mean(dim=2)
