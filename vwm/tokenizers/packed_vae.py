"""A trained autoencoder whose latents are packed: one holds several frames, and no reconstruction error is added.

A transformer over packed latents takes one step for all their frames, as with space-time patches (Sora, Latte, arXiv
2401.03048): a compression of time without another training of the autoencoder, for more channels.

Legend: b batch, t time, t' latents in time, h w grid, H W pixels, c channels of the autoencoder, n latents per pack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from torch import Tensor

from vwm.core.checks import check_positive
from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.causal_conv import DepthToSpaceTime, FrameBuffer, SpaceTimeToDepth
from vwm.tokenizers.causal_vae import CausalVAE, VAEDecoderState, VAEEncoderState
from vwm.tokenizers.loading import load_tokenizer


class PackedEncoderState(NamedTuple):
    """The autoencoder's state, and the latents of the incomplete pack."""

    vae: VAEEncoderState
    pack: FrameBuffer


class PackedDecoderState(NamedTuple):
    """The autoencoder's state, and how many latents of the first pack are copies; see ``DepthToSpaceTime``."""

    vae: VAEDecoderState
    copies: Tensor


class PackedVAE(VideoTokenizer):
    """Put the channels of n consecutive latents of a ``CausalVAE`` side by side; the first latent is repeated n times.

    Args:
        settings: arguments of the autoencoder, a ``CausalVAE``.
        latents: n.

    Raises:
        ValueError: an autoencoder with a codebook, or fewer than two latents.
    """

    @register_to_config
    def __init__(self, settings: Mapping[str, Any], latents: int = 4) -> None:
        super().__init__()
        check_positive(latents=latents)
        self.vae = CausalVAE(**settings)
        if self.vae.codebook_size:
            raise ValueError(f"tokens cannot be packed: set codebook={settings['codebook']} to null")
        self.image_size = self.vae.image_size
        self.grid = self.vae.grid
        self.time_compression = latents * self.vae.time_compression
        self.channels = latents * self.vae.channels
        self.pack = SpaceTimeToDepth(latents, 1)
        self.unpack = DepthToSpaceTime(latents, 1)

    @classmethod
    def of(cls, path: str | os.PathLike[str], latents: int = 4) -> Self:
        """Pack a trained autoencoder: a bundle, its ``tokenizer`` folder, or the name of a world that comes with vwm.

        Raises:
            ValueError: it is no ``CausalVAE`` with continuous latents; see also ``load_tokenizer``.
        """
        vae = load_tokenizer(path)
        if not isinstance(vae, CausalVAE):
            raise ValueError(f"{path} holds a {type(vae).__name__}: only the latents of a CausalVAE are packed")
        settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
        packed = cls(settings, latents)
        packed.vae.load_state_dict(vae.state_dict())
        return packed.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1], t = 1 + r k, r = ``time_compression``."""
        out = self.vae(video)
        return TokenizerOutput(out.video, self._pack(out.latents), out.penalty)

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W], t = 1 + r k -> float [b, 1 + k, h, w, n c].

        Raises:
            ValueError: frames of another size, or a number of frames that does not fill the last latent.
        """
        frames, r = video.shape[1], self.time_compression
        if frames % r != 1 % r:
            raise ValueError(f"video of {frames} frames: {r} frames per latent need 1 + {r} k frames")
        return self._pack(self.vae.encode(video))

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, 1 + k, h, w, n c] -> float [b, 1 + r k, 3, H, W]."""
        return self.vae.decode(self.unpack(latents, self.unpack.init_state(latents, len(latents)))[0])

    def init_encoder(self, batch: int) -> PackedEncoderState:
        """Return the state of the encoder before the first frame."""
        pack = self.pack.init_state(self.vae.mean, batch, *self.grid, self.vae.channels)
        return PackedEncoderState(self.vae.init_encoder(batch), pack)

    def init_decoder(self, batch: int) -> PackedDecoderState:
        """Return the state of the decoder before the first latent."""
        return PackedDecoderState(self.vae.init_decoder(batch), self.unpack.init_state(self.vae.mean, batch))

    def encode_step(self, state: PackedEncoderState, video: Tensor) -> tuple[PackedEncoderState, Tensor]:
        """Encode any number of next frames; return the state and the latents that they complete."""
        vae, latents = self.vae.encode_step(state.vae, video)
        packed, pack = self.pack(latents, state.pack)
        return PackedEncoderState(vae, pack), packed

    def decode_step(self, state: PackedDecoderState, latents: Tensor) -> tuple[PackedDecoderState, Tensor]:
        """Decode the next latents; return the state and their frames."""
        unpacked, copies = self.unpack(latents, state.copies)
        vae, video = self.vae.decode_step(state.vae, unpacked)
        return PackedDecoderState(vae, copies), video

    def _pack(self, latents: Tensor) -> Tensor:
        """[b, t, h, w, c] -> [b, t', h, w, n c]."""
        return self.pack(latents, self.pack.init_state(latents, len(latents), *latents.shape[2:]))[0]
