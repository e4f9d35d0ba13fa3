"""From an encoder's features to the latents in which a world is predicted: all tokens of a frame, or one vector.

Legend: b batch, t time, m tokens of a frame, c their width, n tokens of its latent, D their width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

PoolingType = Literal["none", "mean", "attention", "flatten"]


class LatentProjector(ModelMixin, ConfigMixin):
    """Pools, projects and normalises the features of frames.

    A vision transformer ends in a layer norm, which holds what a regulariser would spread; a projection with batch norm
    behind it sets that free (LeWorldModel, arXiv 2603.19312, section 3).

    Args:
        grid: (h, w) of the encoder's tokens; m = h * w.
        width: c.
        pool: ``"none"`` keeps the tokens (V-JEPA 2-AC); ``"mean"`` averages them, ``"attention"`` with learned weights,
            ``"flatten"`` lays them side by side, so that places stay apart.
        latent_width: D; 0 projects nothing, and D is as wide as what was pooled.
        hidden: width of a hidden layer of the projection; 0 for none.
        norm: ``"batch"`` or ``"layer"`` normalisation, without weights, of the hidden layer where there is one and else
            of the latents; or ``"none"``.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (8, 8),
        width: int = 192,
        pool: PoolingType = "mean",
        latent_width: int = 192,
        hidden: int = 0,
        norm: Literal["none", "layer", "batch"] = "none",
    ) -> None:
        super().__init__()
        if hidden and not latent_width:
            raise ValueError(f"hidden={hidden} is of a projection, and latent_width=0 has none")
        self.features, self.width, self.pool = int(grid[0]) * int(grid[1]), width, pool
        self.latent_grid = (int(grid[0]), int(grid[1])) if pool == "none" else (1, 1)
        wide = self.features * width if pool == "flatten" else width
        self.latent_width = latent_width or wide
        self.query = nn.Parameter(torch.randn(width) * width**-0.5) if pool == "attention" else None
        self.first = nn.Linear(wide, hidden or latent_width) if latent_width else None
        self.second = nn.Linear(hidden, latent_width) if hidden else None
        self.layer_norm = norm == "layer"
        self.batch_norm = nn.BatchNorm1d(hidden or self.latent_width, affine=False) if norm == "batch" else None

    def forward(self, features: Tensor) -> Tensor:
        """[b, t, m, c] -> [b, t, n, D]. Raises ValueError for features of another shape."""
        if tuple(features.shape[2:]) != (self.features, self.width):
            raise ValueError(f"features must be [b, t, {self.features}, {self.width}], got {list(features.shape)}")
        x = self._pool(features)
        x = x if self.first is None else self.first(x)
        x = self._norm(x)
        return x if self.second is None else self.second(F.gelu(x))

    def _pool(self, x: Tensor) -> Tensor:
        if self.pool == "none":
            return x
        if self.pool == "flatten":
            return x.flatten(2)[:, :, None]
        if self.query is None:
            return x.mean(dim=2, keepdim=True)
        shares = (x @ self.query * self.width**-0.5).softmax(dim=-1)
        return (shares[..., None] * x).sum(dim=2, keepdim=True)

    def _norm(self, x: Tensor) -> Tensor:
        if self.batch_norm is not None:
            return self.batch_norm(x.flatten(0, -2)).view_as(x)
        return F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x
