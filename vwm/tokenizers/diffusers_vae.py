"""Published autoencoders of diffusers as tokenizers of single frames.

Legend: b batch, t time, H W pixels, h w the grid of latents, c channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vwm.core.network_base import ModelMixin, find_diffusers_class, register_to_config
from vwm.core.tokenizer import FrameTokenizer
from vwm.nn.pixels import patch_grid

DiffusersConfig = dict[str, Any]


class DiffusersVAESpec(NamedTuple):
    """Shapes of a class of autoencoders, as functions of its config.

    Attributes:
        spatial_compression: pixels per latent, along each side.
        channels: c.
        has_time_axis: whether inputs are videos [b, 3, t, H, W], not images [b, 3, H, W].
    """

    spatial_compression: Callable[[DiffusersConfig], int]
    channels: Callable[[DiffusersConfig], int]
    has_time_axis: bool = True


SUPPORTED_DIFFUSERS_VAES = {
    "AutoencoderKL": DiffusersVAESpec(
        lambda s: 2 ** (len(s["block_out_channels"]) - 1), lambda s: s["latent_channels"], has_time_axis=False
    ),
    "AutoencoderKLCogVideoX": DiffusersVAESpec(
        lambda s: 2 ** (len(s["block_out_channels"]) - 1), lambda s: s["latent_channels"]
    ),
    "AutoencoderKLCosmos": DiffusersVAESpec(lambda s: s["spatial_compression_ratio"], lambda s: s["latent_channels"]),
    "AutoencoderKLWan": DiffusersVAESpec(
        lambda s: 2 ** (len(s["dim_mult"]) - 1) * (s.get("patch_size") or 1), lambda s: s["z_dim"]
    ),
}
"""Supported classes, by their names in diffusers."""


class DiffusersTokenizer(FrameTokenizer):
    """Adapter of a diffusers autoencoder, with latents normalized by its own statistics.

    Each frame is encoded independently, as an image (or as a video of one frame, with which these autoencoders are
    trained to start). Video autoencoders of diffusers keep their streaming state inside the module, where a caller can
    neither hold nor copy it. Single frames need no state, so streaming is exact and there is one latent per action, as
    play requires. The price is that their temporal compression is not used.

    Args:
        image_size: (height, width) of a frame in pixels.
        vae_class: a name in ``SUPPORTED_DIFFUSERS_VAES``.
        vae_config: config of that class.

    Raises:
        ValueError: an unsupported class, or an image size that is not divisible by the spatial compression.
    """

    @register_to_config
    def __init__(self, image_size: tuple[int, int], vae_class: str, vae_config: DiffusersConfig) -> None:
        super().__init__()
        if vae_class not in SUPPORTED_DIFFUSERS_VAES:
            raise ValueError(f"vae_class={vae_class!r} must be one of {', '.join(SUPPORTED_DIFFUSERS_VAES)}")
        self.vae = find_diffusers_class(vae_class).from_config(dict(vae_config))
        settings = dict(self.vae.config)
        spec = SUPPORTED_DIFFUSERS_VAES[vae_class]
        self.has_time_axis = spec.has_time_axis
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid = patch_grid(self.image_size, spec.spatial_compression(settings))
        self.channels = spec.channels(settings)
        mean, std = diffusers_latent_statistics(settings, self.channels)
        # Not persistent, because they are saved in the config.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def from_vae(
        cls,
        vae: ModelMixin,
        image_size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> DiffusersTokenizer:
        """Wrap an autoencoder.

        Args:
            vae: the network.
            image_size: (height, width) of the frames, which the network does not determine.
            grid: (h, w) of the latents, used if ``image_size`` is None.

        Raises:
            ValueError: neither ``image_size`` nor ``grid`` is given.
        """
        name = type(vae).__name__
        settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        if image_size is None:
            if grid is None:
                raise ValueError(f"{name} supports frames of any size: give image_size, or the grid of latents")
            compression = SUPPORTED_DIFFUSERS_VAES[name].spatial_compression(settings)
            image_size = (grid[0] * compression, grid[1] * compression)
        tokenizer = cls(image_size=tuple(image_size), vae_class=name, vae_config=settings)
        tokenizer.vae = vae
        return tokenizer

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, c], the modes of the posteriors."""
        self.check_video(video)
        frames = video.flatten(0, 1)
        z = self.vae.encode(frames[:, :, None] if self.has_time_axis else frames).latent_dist.mode()
        z = rearrange(z[:, :, 0] if self.has_time_axis else z, "(b t) c h w -> b t h w c", b=len(video))
        return (z - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, c] -> float [b, t, 3, H, W]."""
        z = rearrange(latents * self.std + self.mean, "b t h w c -> (b t) c h w")
        frames = self.vae.decode(z[:, :, None] if self.has_time_axis else z).sample
        return (frames[:, :, 0] if self.has_time_axis else frames).unflatten(0, latents.shape[:2])


def diffusers_latent_statistics(settings: DiffusersConfig, channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, float32 [c] each, from the config of an autoencoder."""
    mean, std = settings.get("latents_mean"), settings.get("latents_std")
    if mean is not None and std is not None:
        # Cosmos has values for each latent frame; an image is the first frame.
        first = [torch.tensor(values, dtype=torch.float32).view(channels, -1)[:, 0] for values in (mean, std)]
        return first[0].clone(), first[1].clone()
    shift, scale = settings.get("shift_factor") or 0.0, settings.get("scaling_factor") or 1.0
    return torch.full((channels,), float(shift)), torch.full((channels,), 1 / float(scale))
