"""A small decoder that lets a person see what a latent stands for; nothing is learned for it but itself.

Legend: b batch, t time, n = h w tokens of a frame's latent, D their width.
"""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn


class LatentDecoder(ModelMixin, ConfigMixin):
    """A coarse grid by one linear map, then stages that double its sides up to the picture's.

    Args:
        image_size: (height, width) of the pictures.
        grid: (h, w) of a frame's tokens; (1, 1) where a frame is one vector.
        latent_width: D.
        widths: channels of the coarse grid and after each doubling but the last, which makes the colours.

    Raises:
        ValueError: the doublings do not lead from whole squares of the grid to the picture.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        grid: tuple[int, int] = (1, 1),
        latent_width: int = 192,
        widths: list[int] = [64, 48, 32, 16],  # noqa: B006
    ) -> None:
        super().__init__()
        self.image_size, self.grid = (int(image_size[0]), int(image_size[1])), (int(grid[0]), int(grid[1]))
        self.latent_width = latent_width
        shrink = 2 ** len(widths)
        # Each token begins as a rectangle of the coarse grid: of 4 x 4 places, say, where it stands for a whole frame.
        spread = [side // shrink // tokens for side, tokens in zip(self.image_size, self.grid, strict=True)]
        if any(s * shrink * n != side for s, n, side in zip(spread, self.grid, self.image_size, strict=True)):
            raise ValueError(
                f"{len(widths)} doublings of a grid {list(self.grid)} do not make a picture of "
                f"{list(self.image_size)}: give decoder.widths another number of entries"
            )
        self.spread = spread
        self.coarse = nn.Linear(latent_width, widths[0] * spread[0] * spread[1])
        layers: list[nn.Module] = []
        for width, narrower in zip(widths, [*widths[1:], 3], strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """[b, t, n, D] -> float [b, t, 3, height, width], about [-1, 1]."""
        (h, w), (p, q) = self.grid, self.spread
        x = self.coarse(latents.to(self.coarse.weight.dtype))
        x = rearrange(x, "b t (h w) (p q c) -> (b t) c (h p) (w q)", h=h, w=w, p=p, q=q)
        return self.layers(x).unflatten(0, latents.shape[:2])
