"""Map features of an encoder to the latents that the dynamics predicts: all tokens of a frame, or one vector.

Legend: b batch, t time, m feature tokens per frame, c their width, n latent tokens per frame, D their width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config

PoolingType = Literal["none", "mean", "attention", "flatten"]


class LatentProjector(ModelMixin, ConfigMixin):
    """Pool, project and normalize the features of frames.

    The final layer norm of a vision transformer fixes the norm of its features, which conflicts with regularizers of
    their distribution. A projection followed by batch norm removes this constraint (LeWorldModel, arXiv 2603.19312,
    section 3).

    Args:
        grid: (h, w) of the tokens of the encoder; m = h * w.
        width: c.
        pooling: ``"none"`` keeps the tokens (V-JEPA 2-AC), ``"mean"`` averages them, ``"attention"`` averages them with
            learned weights, ``"flatten"`` concatenates them, which keeps positions distinct.
        latent_width: D; 0 for no projection, with D the width of the pooled features.
        hidden: width of a hidden layer of the projection; 0 for none.
        norm: ``"batch"`` or ``"layer"`` normalization without weights, of the hidden layer if there is one and of the
            latents otherwise; or ``"none"``.

    Raises:
        ValueError: ``hidden`` is set without a projection.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (8, 8),
        width: int = 192,
        pooling: PoolingType = "mean",
        latent_width: int = 192,
        hidden: int = 0,
        norm: Literal["none", "layer", "batch"] = "none",
    ) -> None:
        super().__init__()
        if hidden and not latent_width:
            raise ValueError(f"hidden={hidden} needs a projection: set latent_width above 0, or hidden to 0")
        self.num_tokens = int(grid[0]) * int(grid[1])
        self.width = width
        self.pooling = pooling
        self.latent_grid = (int(grid[0]), int(grid[1])) if pooling == "none" else (1, 1)
        pooled_width = self.num_tokens * width if pooling == "flatten" else width
        self.latent_width = latent_width or pooled_width
        self.query = nn.Parameter(torch.empty(width).normal_(std=width**-0.5)) if pooling == "attention" else None
        self.first = nn.Linear(pooled_width, hidden or latent_width) if latent_width else None
        self.second = nn.Linear(hidden, latent_width) if hidden else None
        self.layer_norm = norm == "layer"
        self.batch_norm = nn.BatchNorm1d(hidden or self.latent_width, affine=False) if norm == "batch" else None

    def forward(self, features: Tensor) -> Tensor:
        """[b, t, m, c] -> [b, t, n, D]. Raises ValueError for features of another shape."""
        if tuple(features.shape[2:]) != (self.num_tokens, self.width):
            raise ValueError(f"features must be [b, t, {self.num_tokens}, {self.width}], got {list(features.shape)}")
        x = self._pool(features)
        x = x if self.first is None else self.first(x)
        x = self._norm(x)
        return x if self.second is None else self.second(F.gelu(x))

    def _pool(self, x: Tensor) -> Tensor:
        if self.pooling == "none":
            return x
        if self.pooling == "flatten":
            return x.flatten(2)[:, :, None]
        if self.query is None:
            return x.mean(dim=2, keepdim=True)
        weights = (x @ self.query * self.width**-0.5).softmax(dim=-1)
        return (weights[..., None] * x).sum(dim=2, keepdim=True)

    def _norm(self, x: Tensor) -> Tensor:
        if self.batch_norm is not None:
            return self.batch_norm(x.flatten(0, -2)).view_as(x)
        return F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x
