"""A small decoder that shows latents as images. Its loss trains the other networks only where it is asked to.

Legend: b batch, t time, n = h w tokens of a frame's latent, D their width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config


class LatentDecoder(ModelMixin, ConfigMixin):
    """Decode latents by a linear map to a coarse grid, and transposed convolutions that double its sides.

    Args:
        image_size: (height, width) of the frames.
        grid: (h, w) of the tokens of a frame; (1, 1) if a frame is one vector.
        latent_width: D.
        widths: channels of the coarse grid and after each stage but the last, which outputs colors.

    Raises:
        ValueError: the stages cannot double the grid of tokens to the image size.
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
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid = (int(grid[0]), int(grid[1]))
        self.latent_width = latent_width
        scale = 2 ** len(widths)
        # Each token becomes a rectangle of the coarse grid, such as 4 x 4 positions for a single token.
        cell = [side // scale // tokens for side, tokens in zip(self.image_size, self.grid, strict=True)]
        if any(c * scale * n != side for c, n, side in zip(cell, self.grid, self.image_size, strict=True)):
            raise ValueError(
                f"{len(widths)} doublings of a grid {list(self.grid)} do not give image_size={list(self.image_size)}: "
                "change the number of entries of decoder.widths"
            )
        self.cell = cell
        self.coarse = nn.Linear(latent_width, widths[0] * cell[0] * cell[1])
        layers: list[nn.Module] = []
        for width, out_width in zip(widths, [*widths[1:], 3], strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(width, out_width, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """[b, t, n, D] -> float [b, t, 3, height, width], about [-1, 1]."""
        (h, w), (p, q) = self.grid, self.cell
        x = self.coarse(latents.to(self.coarse.weight.dtype))
        x = rearrange(x, "b t (h w) (p q c) -> (b t) c (h p) (w q)", h=h, w=w, p=p, q=q)
        return self.layers(x).unflatten(0, latents.shape[:2])
