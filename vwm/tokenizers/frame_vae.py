"""A variational autoencoder with one latent vector per frame: V of World Models (arXiv 1803.10122, appendix A.1).

The loss of the paper is the squared error of pixels in [0, 1], summed over the frame, plus the KL divergence from a
unit Gaussian, summed over the vector and clipped from below (free nats). ``TokenizerModule`` averages the squared error
of pixels in [-1, 1] instead, which is smaller by a factor of 3 H W / 4, so the KL divergence is divided by the same.

Legend: b batch, t time, H W pixels, z size of a latent vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import FrameTokenizer, TokenizerOutput
from vwm.nn.clip_draws import draw_normal_like
from vwm.nn.pixels import patch_grid
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks


class FramePosterior(NamedTuple):
    """Mean and standard deviation of the Gaussian posterior of a latent, float [b, t, 1, 1, z] each."""

    mean: Tensor
    std: Tensor

    def sample(self) -> Tensor:
        """Sample a latent [b, t, 1, 1, z]; see ``draw_normal_like``."""
        return self.mean + self.std * draw_normal_like(self.mean)


class FrameVAE(FrameTokenizer):
    """Encode a frame to a vector and decode it: latents float [b, t, 1, 1, z].

    The convolutions of the encoder halve the frame and those of the decoder double it. They are padded, so that all
    sizes are supported that can be halved that often; those of the paper are not padded and require 64x64.

    The last layer of the decoder is linear. The sigmoid of the paper saturates on a white background, so that small
    dark objects get no gradient and are never learned.

    The static content of most frames (such as the background) causes nearly all of the initial squared error, and takes
    a thousand steps to learn. ``subtract_mean_frame`` subtracts the mean frame of the first batch before the encoder
    and adds it after the decoder, a data-dependent initialization (arXiv 1602.07868) that leaves the differences to
    learn.

    Latents keep the scale of the prior, about unit standard deviation. Normalizing each channel would amplify the noise
    of channels without information.

    Args:
        image_size: (height, width) of a frame in pixels.
        latent_size: z.
        widths: channels of the encoder's convolutions; the decoder mirrors them.
        kl_weight: weight of the KL divergence; 1 as in the paper. Smaller values give more detailed latents.
        free_nats: free nats per element of the latent; only the KL divergence above their sum is penalized.
        subtract_mean_frame: encode and decode differences to the mean frame, which ``initialize_from_data`` computes.
    """

    mean_picture: Tensor | None

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        latent_size: int = 32,
        widths: list[int] = [32, 64, 128, 256],  # noqa: B006 (read only; a list because configs are JSON)
        kl_weight: float = 1.0,
        free_nats: float = 0.5,
        subtract_mean_frame: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        height, width = patch_grid(self.image_size, 2 ** len(widths))
        self.grid = (1, 1)
        self.channels = latent_size
        self.kl_weight = kl_weight
        self.free_nats = free_nats
        inner = widths[-1] * height * width
        encoder: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            encoder += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(inner, 2 * latent_size))
        decoder: list[nn.Module] = [nn.Linear(latent_size, inner), nn.Unflatten(1, (widths[-1], height, width))]
        for before, after in zip(reversed(widths), [*reversed(widths[:-1]), 3], strict=True):
            decoder += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*decoder)
        for layer in [*self.encoder, *self.decoder]:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                # As in the paper (TensorFlow's default). With torch's default, activations shrink in every layer.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))
        self.register_buffer("mean_picture", torch.zeros(3, *self.image_size) if subtract_mean_frame else None)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The parts to compile and to recompute; see ``find_blocks``."""
        return (self.encoder, self.decoder)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last layer, for losses that are scaled by their gradients in it."""
        return self.decoder[-1].get_parameter("weight")

    @torch.no_grad()
    def initialize_from_data(self, video: Tensor) -> None:
        """Compute the mean frame, with ``subtract_mean_frame``; see ``VideoTokenizer.initialize_from_data``."""
        if self.mean_picture is not None:
            self.check_video(video)
            self.mean_picture.copy_(mean_over_ranks(video.mean(dim=(0, 1))))

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1]. In training mode, latents are sampled."""
        posterior = self.posterior(video)
        reconstructed = self.decode(posterior.sample() if self.training else posterior.mean)
        return TokenizerOutput(reconstructed, posterior.mean, self.kl_loss(posterior))

    def posterior(self, video: Tensor) -> FramePosterior:
        """Return the posterior of each frame of float [b, t, 3, H, W], in at least float32.

        Raises:
            ValueError: frames of another size.
        """
        self.check_video(video)
        x = video if self.mean_picture is None else video - self.mean_picture
        features = self.encoder(x.flatten(0, 1)).unflatten(0, video.shape[:2])
        mean, log_variance = at_least_float32(features)[:, :, None, None].chunk(2, dim=-1)
        return FramePosterior(mean, (0.5 * log_variance.clamp(-30, 10)).exp())

    def kl_loss(self, posterior: FramePosterior) -> Tensor:
        """Return the KL divergence above the free nats, scaled to the mean squared error of pixels in [-1, 1]."""
        variance = posterior.std.square()
        divergence = 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).sum(-1)
        floored = divergence.clamp(min=self.free_nats * self.channels).mean()
        return self.kl_weight * floored * 4 / (3 * self.image_size[0] * self.image_size[1])

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> the means of the posteriors, float [b, t, 1, 1, z]."""
        return self.posterior(video).mean

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, 1, 1, z] -> float [b, t, 3, H, W] in [-1, 1]."""
        frames = self.decoder(rearrange(latents, "b t 1 1 z -> (b t) z"))
        frames = frames if self.mean_picture is None else frames + self.mean_picture
        return frames.unflatten(0, latents.shape[:2])
