"""A variational autoencoder that makes one vector of a frame: the V of World Models (arXiv 1803.10122, appendix A.1).

Its loss is the paper's: the squared error of pixels in [0, 1], summed over the frame, plus the KL divergence from a
unit Gaussian, summed over the vector and of no effect below a floor. ``TokenizerModule`` averages the squared error of
pixels in [-1, 1] instead, 3 H W / 4 times less, and so the penalty is divided by that too.

Legend: b batch, t time, H W pixels, z numbers of a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vwm.core.tokenizer import FrameTokenizer, TokenizerOutput
from vwm.nn.pixels import patch_grid


class FramePosterior(NamedTuple):
    """What a frame says of its latent: mean and deviation of a Gaussian, float [b, t, 1, 1, z] each."""

    mean: Tensor
    std: Tensor

    def draw(self) -> Tensor:
        """A latent [b, t, 1, 1, z], from torch's generator."""
        return self.mean + self.std * torch.randn_like(self.mean)


class FrameVAE(FrameTokenizer):
    """A frame to a vector and back: latents float [b, t, 1, 1, z].

    The encoder's convolutions halve the frame and the decoder's double it. They are padded, so that frames of any size
    fit that can be halved so often; the paper's are not, and want 64x64.

    The decoder's last layer is linear, where the paper's is a sigmoid: on a white page that has no gradient left, and
    small black things are never found.

    What most frames share (a white page, a line) fills nearly all of the squared error at first, and a network takes a
    thousand steps to paint it. ``centred`` takes the mean picture of the first batch away before the encoder and puts
    it back after the decoder, as initialisations from data do (arXiv 1602.07868): what is left to learn is what moves.

    The latents' scale is the prior's, about unit deviation, and stays so: what a channel that says nothing has beside
    its noise must not be blown up.

    Args:
        image_size: (height, width) of a frame in pixels.
        latent_size: z.
        widths: channels of the encoder's convolutions; the decoder's mirror them.
        kl_weight: of the KL divergence; 1 is the paper's. Less makes finer latents.
        free_nats: of the KL divergence, for each of the z numbers; only what is above their sum is penalised.
        centred: see and paint what a frame has beside the mean picture, which ``begin`` takes from data.
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
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        height, width = patch_grid(self.image_size, 2 ** len(widths))
        self.grid, self.channels = (1, 1), latent_size
        self.kl_weight, self.free_nats, self.checkpointing = kl_weight, free_nats, False
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
                # As the paper's begin (TensorFlow's defaults); torch's shrink at every layer what a frame says.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))
        self.register_buffer("mean_picture", torch.zeros(3, *self.image_size) if centred else None)

    @property
    def last_layer(self) -> Tensor:
        """The weight that paints, for losses that are scaled by their gradients in it."""
        return self.decoder[-1].get_parameter("weight")

    @torch.no_grad()
    def begin(self, video: Tensor) -> None:
        """See ``VideoTokenizer.begin``: the mean picture, where it is asked for."""
        if self.mean_picture is not None:
            self.check_video(video)
            self.mean_picture.copy_(video.mean(dim=(0, 1)))

    def forward(self, video: Tensor) -> TokenizerOutput:
        """float [b, t, 3, H, W] in [-1, 1]. In training mode the latents carry the posterior's noise."""
        posterior = self.posterior(video)
        shown = self.decode(posterior.draw() if self.training else posterior.mean)
        return TokenizerOutput(shown, posterior.mean, self.penalty(posterior))

    def posterior(self, video: Tensor) -> FramePosterior:
        """What each frame of float [b, t, 3, H, W] says of its latent, in float32 or finer.

        Raises:
            ValueError: frames of another size.
        """
        self.check_video(video)
        seen = video if self.mean_picture is None else video - self.mean_picture
        said = self._run(self.encoder, seen.flatten(0, 1)).unflatten(0, video.shape[:2])
        said = said.float() if said.dtype in (torch.bfloat16, torch.float16) else said
        mean, log_variance = said[:, :, None, None].chunk(2, dim=-1)
        return FramePosterior(mean, (0.5 * log_variance.clamp(-30, 10)).exp())

    def penalty(self, posterior: FramePosterior) -> Tensor:
        """The KL divergence above its floor, scaled to a squared error that is averaged over [-1, 1]."""
        variance = posterior.std.square()
        divergence = 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).sum(-1)
        floored = divergence.clamp(min=self.free_nats * self.channels).mean()
        return self.kl_weight * floored * 4 / (3 * self.image_size[0] * self.image_size[1])

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> the posteriors' means, float [b, t, 1, 1, z]."""
        return self.posterior(video).mean

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, 1, 1, z] -> float [b, t, 3, H, W] in [-1, 1]."""
        painted = self._run(self.decoder, rearrange(latents, "b t 1 1 z -> (b t) z"))
        painted = painted if self.mean_picture is None else painted + self.mean_picture
        return painted.unflatten(0, latents.shape[:2])

    def _run(self, network: nn.Sequential, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(network, x, use_reentrant=False)
        return network(x)
