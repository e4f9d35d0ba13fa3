"""Pixels as latents, for dynamics that live in pixel space (as DIAMOND's do, arXiv 2405.12399).

Legend: b batch, t time, H W pixels, p patch side, h = H/p, w = W/p.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor

from vwm.core.tokenizer import FrameTokenizer, TokenizerOutput
from vwm.nn.pixels import patch_grid


class PixelTokenizer(FrameTokenizer):
    """No network: latents are normalised pixels, [b, t, h, w, p*p*3], and the way back is exact.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: side of the square of pixels that one latent holds, p; the dynamics then needs no patches of its
            own.
        pixel_mean: of the pixels in [-1, 1]; taken off.
        pixel_std: their deviation; divided by. Natural pictures and games have about a half.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 1,
        pixel_mean: float = 0.0,
        pixel_std: float = 0.5,
    ) -> None:
        super().__init__()
        if pixel_std <= 0:
            raise ValueError(f"pixel_std={pixel_std} must be positive")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size = patch_size
        self.grid = patch_grid(self.image_size, patch_size)
        self.channels = 3 * patch_size**2
        # Saved as weights are, so that this tokenizer's folder is like any other's.
        self.register_buffer("mean", torch.tensor(float(pixel_mean)))
        self.register_buffer("std", torch.tensor(float(pixel_std)))

    def forward(self, video: Tensor) -> TokenizerOutput:
        """There and back: float [b, t, 3, H, W]."""
        latents = self.encode(video)
        return TokenizerOutput(self.decode(latents), latents, video.new_zeros(()))

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, p*p*3]."""
        self.check_video(video)
        p = self.patch_size
        return rearrange((video - self.mean) / self.std, "b t c (h p) (w q) -> b t h w (p q c)", p=p, q=p)

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, p*p*3] -> float [b, t, 3, H, W]."""
        p = self.patch_size
        return rearrange(latents * self.std + self.mean, "b t h w (p q c) -> b t c (h p) (w q)", p=p, q=p)
