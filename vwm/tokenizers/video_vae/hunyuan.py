"""The autoencoder of HunyuanVideo (arXiv 2412.03603), with group norms and attention to all past frames.

diffusers normalizes over whole clips, and divides those of more than 16 frames into overlapping ones that it blends.
Here the frames of each latent are normalized by themselves: see ``StreamingGroupNorm``.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as diffusers_hunyuan
from torch import Tensor, nn

from vwm.tokenizers.video_vae.adapter import VideoVAEAdapter
from vwm.tokenizers.video_vae.group_norm import StreamingGroupNorm
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer, attend_to_all_frames, convolve


class StreamingHunyuanConv(StreamingLayer, diffusers_hunyuan.HunyuanVideoCausalConv3d):
    """A causal convolution; copies of the first frame precede the clip, and of the borders surround it."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        *space, frames, _ = self.time_causal_padding
        if frames:  # else a stride would keep a negative number of frames
            x = stream.with_past(x, keep=frames + 1 - self.conv.stride[0], initial=frames, fill="first")
        return convolve(self.conv, x, *space, 0, 0, mode=self.pad_mode)


class StreamingHunyuanUpsample(StreamingLayer, diffusers_hunyuan.HunyuanVideoUpsampleCausal3D):
    """Enlarges frames and repeats them, except the clip's first one."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> [b, c', t', h', w']."""
        times, rows, columns = (int(factor) for factor in self.upsample_factor)
        x = x.repeat_interleave(times, dim=2)[:, :, (times - 1) * int(stream.is_first) :]
        return self.conv(x.repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4))


class StreamingHunyuanMidBlock(StreamingLayer, diffusers_hunyuan.HunyuanVideoMidBlock3D):
    """Residual blocks, and attention to all positions of all frames up to one's own between them."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, c, t, h, w] -> the same shape."""
        x = self.resnets[0](x)
        for attention, block in zip(self.attentions, self.resnets[1:], strict=True):
            x = block(x if attention is None else self._attend(stream, attention, x))
        return x

    @staticmethod
    def _attend(stream: Stream, attention: Any, x: Tensor) -> Tensor:
        normed = attention.group_norm(x).movedim(1, -1)
        query, key, value = (layer(normed).movedim(-1, 1) for layer in (attention.to_q, attention.to_k, attention.to_v))
        mixed = attend_to_all_frames(stream, query, key, value, attention.heads)
        return x + attention.to_out[0](mixed.movedim(1, -1)).movedim(-1, 1)


class HunyuanVideoAdapter(VideoVAEAdapter):
    """``AutoencoderKLHunyuanVideo``."""

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]] = {
        diffusers_hunyuan.HunyuanVideoCausalConv3d: StreamingHunyuanConv,
        diffusers_hunyuan.HunyuanVideoUpsampleCausal3D: StreamingHunyuanUpsample,
        diffusers_hunyuan.HunyuanVideoMidBlock3D: StreamingHunyuanMidBlock,
        nn.GroupNorm: StreamingGroupNorm,
    }

    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        mode: Tensor = vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)[0]
        return mode

    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """See ``VideoVAEAdapter``."""
        return vae.decoder(vae.post_quant_conv(z))
