"""Encode and decode large frames in overlapping tiles that are blended, to limit the memory.

A latent or pixel that is covered by one tile only, and is farther from its edges than the receptive field, is exactly
the same as without tiles. In overlaps, tiles are averaged with weights that decrease toward their edges.

Legend: b batch, t time, t' latents in time, h w the grid of latents, H W pixels, c channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from vwm.tokenizers.causal_vae import CausalVAE


def encode_tiled(vae: CausalVAE, video: Tensor, tile: int = 32, overlap: int = 8) -> Tensor:
    """Apply ``vae.encode`` to float [b, t, 3, H, W] tile by tile.

    Args:
        vae: the tokenizer, for frames of this size.
        video: as in ``encode``.
        tile: side of a tile, in latents.
        overlap: overlap of neighboring tiles, in latents.

    Raises:
        ValueError: a video of another size, or ``overlap`` is not between 0 and ``tile``.
    """
    vae.check_video(video)
    s = vae.space_compression
    tile_vae = _with_tile_size(vae, tile)
    blender = _TileBlender(vae.grid, blend=not vae.codebook_size)
    for rows, columns in _tile_grid(vae.grid, tile, overlap):
        x = video[..., rows.start * s : rows.stop * s, columns.start * s : columns.stop * s]
        blender.add(tile_vae.encode(x), rows, columns, overlap)
    return blender.result()


def decode_tiled(vae: CausalVAE, latents: Tensor, tile: int = 32, overlap: int = 8) -> Tensor:
    """Apply ``vae.decode`` to latents [b, t', h, w, c] or tokens [b, t', h, w] tile by tile; see ``encode_tiled``."""
    s = vae.space_compression
    blender = _TileBlender(vae.image_size, blend=True)
    for rows, columns in _tile_grid(vae.grid, tile, overlap):
        frames = vae.decode(latents[:, :, rows, columns]).movedim(2, -1)
        pixel_rows, pixel_columns = (slice(x.start * s, x.stop * s) for x in (rows, columns))
        blender.add(frames, pixel_rows, pixel_columns, overlap * s)
    return blender.result().movedim(-1, 2)


class _TileBlender:
    """Combine tiles [b, t, h, w, ...] by their weighted mean or, for tokens, take those with the largest weight."""

    def __init__(self, size: tuple[int, int], blend: bool) -> None:
        self.size = size
        self.blend = blend
        self.sum: Tensor | None = None

    def add(self, tile: Tensor, rows: slice, columns: slice, overlap: int) -> None:
        if self.sum is None:
            self.sum = tile.new_zeros(*tile.shape[:2], *self.size, *tile.shape[4:])
            dtype = tile.dtype if self.blend else torch.float32
            self.weight = torch.zeros(self.size, dtype=dtype, device=tile.device)
        row_weights = _blend_weights(rows, self.size[0], overlap)
        column_weights = _blend_weights(columns, self.size[1], overlap)
        weight = torch.outer(row_weights, column_weights).to(self.weight)
        target = self.sum[:, :, rows, columns]
        if self.blend:
            target += tile * weight.view(*weight.shape, *[1] * (tile.ndim - 4))
            self.weight[rows, columns] += weight
        else:
            larger = weight > self.weight[rows, columns]
            target.copy_(torch.where(larger, tile, target))
            self.weight[rows, columns] = torch.where(larger, weight, self.weight[rows, columns])

    def result(self) -> Tensor:
        assert self.sum is not None  # every grid has at least one tile
        return self.sum / self.weight.view(*self.size, *[1] * (self.sum.ndim - 4)) if self.blend else self.sum


def _with_tile_size(vae: CausalVAE, tile: int) -> CausalVAE:
    """Return the same network, with shared weights, for frames of the size of a tile."""
    tile_vae = copy.copy(vae)
    tile_vae.grid = (min(tile, vae.grid[0]), min(tile, vae.grid[1]))
    tile_vae.image_size = (tile_vae.grid[0] * vae.space_compression, tile_vae.grid[1] * vae.space_compression)
    return tile_vae


def _tile_grid(grid: tuple[int, int], tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than tile={tile}")
    return product(_tile_slices(grid[0], tile, overlap), _tile_slices(grid[1], tile, overlap))


def _tile_slices(length: int, tile: int, overlap: int) -> list[slice]:
    """Return slices of size ``tile`` that cover ``length``; the last one ends at ``length`` and may overlap more."""
    side = min(tile, length)
    starts = [*range(0, length - side, tile - overlap), length - side]
    return [slice(start, start + side) for start in starts]


def _blend_weights(interval: slice, length: int, overlap: int) -> Tensor:
    """Return weights along a tile: 1, decreasing linearly in overlaps, but not at the edges of the frame."""
    side = interval.stop - interval.start
    centers = torch.arange(side) + 0.5
    left = centers if interval.start else torch.full_like(centers, torch.inf)
    right = side - centers if interval.stop < length else torch.full_like(centers, torch.inf)
    return torch.minimum(left, right).div(max(overlap, 1)).clamp(max=1.0)
