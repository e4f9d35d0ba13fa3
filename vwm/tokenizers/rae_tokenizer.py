"""diffusers' representation autoencoders as tokenizers of frames (RAE, arXiv 2510.11690).

Legend: b batch, t time, H W pixels, h w the grid of latents, d channels.
"""

from __future__ import annotations

import sys
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor

from vwm.core.network_base import ModelMixin, find_diffusers_class, register_to_config
from vwm.core.tokenizer import FrameTokenizer

RAE_CLASS = "AutoencoderRAE"
"""The class in diffusers."""


class RAETokenizer(FrameTokenizer):
    """Encode each frame by the frozen encoder of a published representation autoencoder, and decode by its decoder.

    Latents are normalized by the statistics that come with it. ``RepresentationCodec`` trains such a codec.

    Args:
        vae_config: config of diffusers' ``AutoencoderRAE``.

    Raises:
        ImportError: transformers, which has the encoder, is not installed.
    """

    @register_to_config
    def __init__(self, vae_config: dict[str, Any]) -> None:
        super().__init__()
        self._attach(find_rae_class().from_config(dict(vae_config)))

    @classmethod
    def from_vae(
        cls, vae: ModelMixin, image_size: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
    ) -> Self:
        """Wrap an autoencoder, which determines the size of frames; other sizes raise ValueError."""
        with torch.device("meta"):  # its weights are replaced
            tokenizer = cls({key: value for key, value in vae.config.items() if not key.startswith("_")})
        tokenizer._attach(vae)
        for name, given, own in (("image_size", image_size, tokenizer.image_size), ("grid", grid, tokenizer.grid)):
            if given is not None and tuple(given) != own:
                raise ValueError(f"{name}={list(given)}: this AutoencoderRAE has {list(own)}")
        return tokenizer

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, d]."""
        self.check_video(video)
        z = self.vae.encode((video.flatten(0, 1) + 1) / 2).latent
        z = z if self.vae.reshape_to_2d else rearrange(z, "n (h w) d -> n d h w", h=self.grid[0])
        return rearrange(z, "(b t) d h w -> b t h w d", b=len(video))

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, d] -> float [b, t, 3, H, W]."""
        z = rearrange(latents, "b t h w d -> (b t) d h w")
        z = z if self.vae.reshape_to_2d else rearrange(z, "n d h w -> n (h w) d")
        return (self.vae.decode(z).sample * 2 - 1).unflatten(0, latents.shape[:2])

    def _attach(self, vae: Any) -> None:
        self.vae = vae
        self.image_size = (vae.decoder_image_size, vae.decoder_image_size)
        side = vae.decoder_image_size // vae.decoder_patch_size
        self.grid = (side, side)
        self.channels = int(vae.config["encoder_hidden_size"])


def find_rae_class() -> type[ModelMixin]:
    """Return diffusers' class with what it needs of transformers, without which diffusers was imported here.

    Raises:
        ImportError: transformers is not installed.
    """
    found = find_diffusers_class(RAE_CLASS)
    module = sys.modules[found.__module__]
    try:
        import transformers
    except ImportError as error:
        raise ImportError("AutoencoderRAE requires transformers: pip install 'vwm[transformers]'") from error
    for family in ("Dinov2WithRegisters", "SiglipVision", "ViTMAE"):
        for name in (f"{family}Config", f"{family}Model"):
            if not hasattr(module, name):
                setattr(module, name, getattr(transformers, name))
    return found
