"""Pixels as latents, for dynamics in pixel space (as in DIAMOND, arXiv 2405.12399).

Legend: b batch, t time, H W pixels, p patch side, h = H/p, w = W/p.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import FrameTokenizer
from vwm.nn.pixels import patch_grid


class PixelTokenizer(FrameTokenizer):
    """Tokenizer without a network: latents are normalized pixels, [b, t, h, w, p*p*3], and decoding is exact.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: p, side of the square of pixels that forms one latent; the dynamics can then use a patch size of 1.
        pixel_mean: mean of the pixels in [-1, 1], which is subtracted.
        pixel_std: their standard deviation, by which they are divided; about 0.5 for natural images and games.

    Raises:
        ValueError: ``pixel_std`` is not positive, or the patches do not divide the frame.
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
        # Persistent, so that the folder of this tokenizer has weights like any other.
        self.register_buffer("mean", torch.tensor(float(pixel_mean)))
        self.register_buffer("std", torch.tensor(float(pixel_std)))

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, p*p*3]."""
        self.check_video(video)
        p = self.patch_size
        return rearrange((video - self.mean) / self.std, "b t c (h p) (w q) -> b t h w (p q c)", p=p, q=p)

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, p*p*3] -> float [b, t, 3, H, W]."""
        p = self.patch_size
        return rearrange(latents * self.std + self.mean, "b t h w (p q c) -> b t c (h p) (w q)", p=p, q=p)
