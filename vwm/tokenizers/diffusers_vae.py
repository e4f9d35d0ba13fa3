"""Published video autoencoders of diffusers as tokenizers, a frame at a time.

Legend: b batch, t time, H W pixels, h w the grid of latents, c channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor

from vwm.core.tokenizer import FrameTokenizer, TokenizerOutput
from vwm.nn.pixels import patch_grid

DiffusersConfig = dict[str, Any]


class DiffusersVAESpec(NamedTuple):
    """What a class of autoencoders makes of a picture, by its settings.

    Attributes:
        space: pixels a latent, on each side.
        channels: c.
        video: whether it wants a time axis.
    """

    space: Callable[[DiffusersConfig], int]
    channels: Callable[[DiffusersConfig], int]
    video: bool = True


SUPPORTED_DIFFUSERS_VAES = {
    "AutoencoderKL": DiffusersVAESpec(
        lambda s: 2 ** (len(s["block_out_channels"]) - 1), lambda s: s["latent_channels"], video=False
    ),
    "AutoencoderKLCogVideoX": DiffusersVAESpec(
        lambda s: 2 ** (len(s["block_out_channels"]) - 1), lambda s: s["latent_channels"]
    ),
    "AutoencoderKLCosmos": DiffusersVAESpec(lambda s: s["spatial_compression_ratio"], lambda s: s["latent_channels"]),
    "AutoencoderKLWan": DiffusersVAESpec(
        lambda s: 2 ** (len(s["dim_mult"]) - 1) * (s.get("patch_size") or 1), lambda s: s["z_dim"]
    ),
}
"""The classes that are known to work, by their names in diffusers."""


class DiffusersTokenizer(FrameTokenizer):
    """A diffusers autoencoder behind our interface, its latents normalised by its own statistics.

    Every frame is encoded by itself, as a picture. These autoencoders keep their memory of a video in the module, where
    no caller can hold or branch it; a frame alone needs none, so a stream is exact and every latent has an action of
    its own. It costs their compression of time (a video of one frame is what they are trained to begin with), and buys
    a world that can be played.

    Args:
        image_size: (height, width) of a frame in pixels.
        vae_class: a name in ``SUPPORTED_DIFFUSERS_VAES``.
        vae_config: settings of that class.

    Raises:
        ValueError: another class, or frames that its latents do not divide.
    """

    @register_to_config
    def __init__(self, image_size: tuple[int, int], vae_class: str, vae_config: DiffusersConfig) -> None:
        super().__init__()
        if vae_class not in SUPPORTED_DIFFUSERS_VAES:
            raise ValueError(f"vae_class={vae_class!r} must be one of {', '.join(SUPPORTED_DIFFUSERS_VAES)}")
        self.vae = getattr(diffusers, vae_class).from_config(dict(vae_config))
        settings, shape = dict(self.vae.config), SUPPORTED_DIFFUSERS_VAES[vae_class]
        self.video = shape.video
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid = patch_grid(self.image_size, shape.space(settings))
        self.channels = shape.channels(settings)
        mean, std = diffusers_latent_statistics(settings, self.channels)
        # From the config, not among the weights: they are numbers about the weights.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def of(
        cls,
        vae: ModelMixin,
        image_size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> DiffusersTokenizer:
        """Of an autoencoder that is there.

        Args:
            vae: the network.
            image_size: (height, width) of the frames that it is for; it suits any size, so somebody must say.
            grid: or else (h, w) of the latents.

        Raises:
            ValueError: neither of the two is given.
        """
        name = type(vae).__name__
        settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        if image_size is None:
            if grid is None:
                raise ValueError(f"an {name} suits frames of any size: say the image_size, or the grid of latents")
            space = SUPPORTED_DIFFUSERS_VAES[name].space(settings)
            image_size = (grid[0] * space, grid[1] * space)
        tokenizer = cls(image_size=tuple(image_size), vae_class=name, vae_config=settings)
        tokenizer.vae = vae
        return tokenizer

    def forward(self, video: Tensor) -> TokenizerOutput:
        """There and back: float [b, t, 3, H, W] in [-1, 1]."""
        latents = self.encode(video)
        return TokenizerOutput(self.decode(latents), latents, video.new_zeros(()))

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, c], the likeliest latents."""
        self.check_video(video)
        frames = video.flatten(0, 1)
        z = self.vae.encode(frames[:, :, None] if self.video else frames).latent_dist.mode()
        z = rearrange(z[:, :, 0] if self.video else z, "(b t) c h w -> b t h w c", b=len(video))
        return (z - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, c] -> float [b, t, 3, H, W]."""
        z = rearrange(latents * self.std + self.mean, "b t h w c -> (b t) c h w")
        frames = self.vae.decode(z[:, :, None] if self.video else z).sample
        return (frames[:, :, 0] if self.video else frames).unflatten(0, latents.shape[:2])


def diffusers_latent_statistics(settings: DiffusersConfig, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of an autoencoder's latents, float32 [c] twice, as its settings state them."""
    mean, std = settings.get("latents_mean"), settings.get("latents_std")
    if mean is not None and std is not None:
        # Cosmos has them for every latent frame; a picture is a first frame.
        first = [torch.tensor(of, dtype=torch.float32).view(channels, -1)[:, 0] for of in (mean, std)]
        return first[0].clone(), first[1].clone()
    shift, scale = settings.get("shift_factor") or 0.0, settings.get("scaling_factor") or 1.0
    return torch.full((channels,), float(shift)), torch.full((channels,), 1 / float(scale))
