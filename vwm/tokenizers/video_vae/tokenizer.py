"""Published video autoencoders of diffusers as tokenizers that compress time.

Legend: b batch, t time, t' latents in time, h w grid of latents, H W pixels, c channels, r frames per latent.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor

from vwm.core.network_base import ModelMixin, find_diffusers_class, register_to_config
from vwm.core.tokenizer import VideoTokenizer
from vwm.nn.pixels import patch_grid
from vwm.tokenizers.video_vae.adapter import find_adapter
from vwm.tokenizers.video_vae.statistics import video_latent_statistics
from vwm.tokenizers.video_vae.stream import make_streaming, streaming

LATENTS_PER_PASS = 8
"""Number of latents of a long clip that are encoded or decoded at once. Limits memory; results do not depend on it."""


class VideoVAEEncoderState(NamedTuple):
    """State of an encoder.

    Attributes:
        position: int64 [b], the number of latents so far.
        frames: float [b, p, 3, H, W], the frames of the incomplete latent.
        layers: what the layers keep of past frames; empty before the first latent.
    """

    position: Tensor
    frames: Tensor
    layers: tuple[Tensor, ...]


class VideoVAEDecoderState(NamedTuple):
    """State of a decoder.

    Attributes:
        position: int64 [b], the number of latents so far.
        layers: what the layers keep of past latents; empty before the first one.
    """

    position: Tensor
    layers: tuple[Tensor, ...]


class VideoVAETokenizer(VideoTokenizer):
    """A video autoencoder of diffusers, with latents normalized by its own statistics.

    The first latent holds one frame, each later one r frames. Encoding and decoding continue from a state that the
    caller holds, where diffusers' classes keep it inside or have none. ``docs/tokenizers.md`` says for each class what
    that gives.

    Args:
        image_size: (height, width) of a frame in pixels.
        vae_class: a name in ``vwm.tokenizers.video_vae.adapter.VIDEO_VAES``.
        vae_config: config of that class.

    Raises:
        ValueError: a class or setting that is not supported, or an image size that is not divisible by the spatial
            compression.
    """

    @register_to_config
    def __init__(self, image_size: tuple[int, int], vae_class: str, vae_config: dict[str, Any]) -> None:
        super().__init__()
        self.adapter = find_adapter(vae_class)
        self.adapter.check(vae_config)
        self._attach(find_diffusers_class(vae_class).from_config(dict(vae_config)))
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.time_compression, side = self.adapter.compression(self.vae)
        self.grid = patch_grid(self.image_size, side)
        self.channels = self.adapter.channels(self.vae.config)
        mean, std = video_latent_statistics(self.vae.config, self.channels)
        # Not persistent, because they are saved in the config.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def from_vae(
        cls, vae: ModelMixin, image_size: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
    ) -> Self:
        """Wrap an autoencoder, whose layers get a second forward for streams; its own methods work as before.

        Args:
            vae: the network.
            image_size: (height, width) of the frames, which the network does not determine.
            grid: (h, w) of the latents, used if ``image_size`` is None.

        Raises:
            ValueError: neither ``image_size`` nor ``grid`` is given; see also the class.
        """
        name = type(vae).__name__
        settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        if image_size is None:
            if grid is None:
                raise ValueError(f"{name} supports frames of any size: give image_size, or the grid of latents")
            side = find_adapter(name).compression(vae)[1]
            image_size = (grid[0] * side, grid[1] * side)
        with torch.device("meta"):  # its weights are replaced
            tokenizer = cls(image_size=tuple(image_size), vae_class=name, vae_config=settings)
        tokenizer._attach(vae)
        tokenizer.mean, tokenizer.std = video_latent_statistics(vae.config, tokenizer.channels)
        return tokenizer

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1], t = 1 + r k -> float [b, 1 + k, h, w, c], the modes of the posteriors.

        Raises:
            ValueError: frames of another size, or a number of frames that does not fill the last latent.
        """
        r = self.time_compression
        if video.shape[1] % r != 1 % r:
            raise ValueError(f"video of {video.shape[1]} frames: {r} frames per latent need 1 + {r} k frames")
        return self.encode_step(self.init_encoder(len(video)), video)[1]

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, 1 + k, h, w, c] -> float [b, 1 + r k, 3, H, W]."""
        return self._decode(self.init_decoder(len(latents)), latents)[1]

    def init_encoder(self, batch: int) -> VideoVAEEncoderState:
        """Return the state of the encoder before the first frame."""
        like = next(self.vae.parameters())
        return VideoVAEEncoderState(self._start(batch), like.new_zeros(batch, 0, 3, *self.image_size), ())

    def init_decoder(self, batch: int) -> VideoVAEDecoderState:
        """Return the state of the decoder before the first latent."""
        return VideoVAEDecoderState(self._start(batch), ())

    def encode_step(self, state: VideoVAEEncoderState, video: Tensor) -> tuple[VideoVAEEncoderState, Tensor]:
        """Encode any number of next frames; return the state and the latents that they complete, which may be none."""
        self.check_video(video)
        position, frames, layers = state
        frames, passes = torch.cat((frames.to(video.dtype), video), dim=1), []
        while latents := self._latents_of_pass(frames.shape[1], is_first=not layers):
            length = latents * self.time_compression - (0 if layers else self.time_compression - 1)
            x = rearrange(frames[:, :length], "b t c h w -> b c t h w")
            with streaming(layers, latents) as stream:
                z = self.adapter.encode(self.vae, x, stream)
            frames, layers = frames[:, length:], tuple(stream.kept)
            passes.append(rearrange(z, "b c t h w -> b t h w c"))
        z = torch.cat(passes, dim=1) if passes else video.new_zeros(len(video), 0, *self.grid, self.channels)
        mean, std = self._statistics(position, z.shape[1])
        return VideoVAEEncoderState(position + z.shape[1], frames, layers), (z - mean) / std

    def decode_step(self, state: VideoVAEDecoderState, latents: Tensor) -> tuple[VideoVAEDecoderState, Tensor]:
        """Decode the next latents; return the state and their frames.

        Raises:
            ValueError: a decoder whose frames depend on later latents.
        """
        if not self.adapter.decoder_is_causal(self.vae.config):
            raise ValueError(
                f"the decoder of this {type(self.vae).__name__} is not causal: its frames depend on later latents, so "
                "that it cannot decode step by step; use decode on whole clips, or another tokenizer to play"
            )
        return self._decode(state, latents)

    def _decode(self, state: VideoVAEDecoderState, latents: Tensor) -> tuple[VideoVAEDecoderState, Tensor]:
        position, layers = state
        mean, std = self._statistics(position, latents.shape[1])
        z, passes = rearrange(latents * std + mean, "b t h w c -> b c t h w"), []
        per_pass = LATENTS_PER_PASS if self.adapter.decoder_is_causal(self.vae.config) else z.shape[2]
        for part in z.split(per_pass, dim=2) if z.shape[2] else ():
            with streaming(layers, part.shape[2]) as stream:
                passes.append(self.adapter.decode(self.vae, part, stream))
            layers = tuple(stream.kept)
        video = torch.cat(passes, dim=2) if passes else z.new_zeros(len(z), 3, 0, *self.image_size)
        return VideoVAEDecoderState(position + z.shape[2], layers), rearrange(video, "b c t h w -> b t c h w")

    def _attach(self, vae: ModelMixin) -> None:
        make_streaming(vae, self.adapter.layers)
        self.vae = vae

    def _start(self, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64, device=next(self.vae.parameters()).device)

    def _latents_of_pass(self, frames: int, is_first: bool) -> int:
        """Number of latents to encode next, all of which these frames complete."""
        complete = 1 + (frames - 1) // self.time_compression if is_first and frames else frames // self.time_compression
        return min(complete, LATENTS_PER_PASS)

    def _statistics(self, position: Tensor, latents: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next latents, [b, t', 1, 1, c] each; those of the last row repeat."""
        mean, std = self.adapter.statistics(self.vae) or (self.mean, self.std)
        index = position[:, None] + torch.arange(latents, device=position.device)
        index = index.clamp(max=len(mean) - 1)
        return mean[index][:, :, None, None], std[index][:, :, None, None]
