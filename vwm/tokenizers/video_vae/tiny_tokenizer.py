"""A published video autoencoder that decodes with a tiny decoder.

Legend: b batch, t time, t' latents in time, h w grid of latents, H W pixels, c channels, r frames per latent.
"""

from __future__ import annotations

import os
from typing import Any, Self

import torch
from torch import Tensor

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import VideoTokenizer
from vwm.tokenizers.video_vae.stream import streaming
from vwm.tokenizers.video_vae.tiny_decoder import (
    TinyDecoderConfig,
    TinyVideoDecoder,
    infer_tiny_decoder_config,
    read_tiny_decoder,
)
from vwm.tokenizers.video_vae.tokenizer import (
    LATENTS_PER_PASS,
    VideoVAEDecoderState,
    VideoVAEEncoderState,
    VideoVAETokenizer,
)


class TinyDecoderTokenizer(VideoTokenizer):
    """Encode as a published autoencoder and decode with TAEHV, for preview and play: faster, and somewhat less sharp.

    Its latents are those of the autoencoder, so that it takes its place in a world that was trained on them.

    Args:
        vae_settings: arguments of the ``VideoVAETokenizer``.
        decoder_settings: arguments of the ``TinyDecoderConfig``.

    Raises:
        ValueError: the decoder is made for latents of other channels, frames or pixels.
    """

    @register_to_config
    def __init__(self, vae_settings: dict[str, Any], decoder_settings: dict[str, Any]) -> None:
        super().__init__()
        self._attach(VideoVAETokenizer(**vae_settings), TinyVideoDecoder(TinyDecoderConfig(**decoder_settings)))
        channels, pixels = decoder_settings["latent_channels"], 8 * decoder_settings["patch_size"]
        side = self.image_size[0] // self.grid[0]
        for name, value, other in (
            ("channels", channels, self.channels),
            ("frames", self.decoder.time_compression, self.time_compression),
            ("pixels", pixels, side),
        ):
            if value != other:
                raise ValueError(
                    f"the tiny decoder takes latents of {value} {name}, and {vae_settings['vae_class']} has {other}"
                )

    @classmethod
    def of(cls, tokenizer: VideoVAETokenizer, file: str | os.PathLike[str]) -> Self:
        """Give an autoencoder the decoder of a file: see ``read_tiny_decoder``."""
        settings = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
        decoder = read_tiny_decoder(file)
        with torch.device("meta"):
            tiny = cls(vae_settings=settings, decoder_settings=infer_tiny_decoder_config(decoder)._asdict())
        tiny._attach(tokenizer, decoder)
        return tiny.eval().requires_grad_(False)

    def encode(self, video: Tensor) -> Tensor:
        """See ``VideoVAETokenizer.encode``."""
        return self.vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, 1 + k, h, w, c] -> float [b, 1 + r k, 3, H, W]."""
        return self.decode_step(self.init_decoder(len(latents)), latents)[1]

    def init_encoder(self, batch: int) -> VideoVAEEncoderState:
        """Return the state of the encoder before the first frame."""
        return self.vae.init_encoder(batch)

    def init_decoder(self, batch: int) -> VideoVAEDecoderState:
        """Return the state of the decoder before the first latent."""
        return VideoVAEDecoderState(self.vae.init_decoder(batch).position, ())

    def encode_step(self, state: VideoVAEEncoderState, video: Tensor) -> tuple[VideoVAEEncoderState, Tensor]:
        """Encode any number of next frames; return the state and the latents that they complete, which may be none."""
        return self.vae.encode_step(state, video)

    def decode_step(self, state: VideoVAEDecoderState, latents: Tensor) -> tuple[VideoVAEDecoderState, Tensor]:
        """Decode the next latents; return the state and their frames."""
        position, layers = state
        passes = []
        for part in latents.permute(0, 1, 4, 2, 3).split(LATENTS_PER_PASS, dim=1) if latents.shape[1] else ():
            with streaming(layers) as stream:
                passes.append(self.decoder(part, stream))
            layers = tuple(stream.kept)
        video = torch.cat(passes, dim=1) if passes else latents.new_zeros(len(latents), 0, 3, *self.image_size)
        return VideoVAEDecoderState(position + latents.shape[1], layers), video

    def _attach(self, vae: VideoVAETokenizer, decoder: TinyVideoDecoder) -> None:
        self.vae = vae
        self.decoder = decoder
        self.image_size = vae.image_size
        self.grid = vae.grid
        self.channels = vae.channels
        self.time_compression = vae.time_compression
