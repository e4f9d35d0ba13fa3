"""Frames too large for the memory, in overlapping tiles that are blended.

A latent, or a pixel, that lies in one tile only, further from its edges than the network looks, is exactly what it is
without tiles. In the overlaps the tiles' answers are mixed, each by its distance from the tile's edge.

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
    """What ``vae.encode`` gives for float [b, t, 3, H, W], computed tile by tile.

    Args:
        vae: for frames of this size.
        video: as for ``encode``.
        tile: side of a tile, in latents.
        overlap: of neighbouring tiles, in latents.
    """
    vae.check_video(video)
    s, part = vae.space_compression, _with_tile_size(vae, tile)
    canvas = _TileBlender(vae.grid, blend=not vae.codebook_size)
    for rows, columns in _tile_grid(vae.grid, tile, overlap):
        piece = video[..., rows.start * s : rows.stop * s, columns.start * s : columns.stop * s]
        canvas.add(part.encode(piece), rows, columns, overlap)
    return canvas.result()


def decode_tiled(vae: CausalVAE, latents: Tensor, tile: int = 32, overlap: int = 8) -> Tensor:
    """What ``vae.decode`` gives for latents [b, t', h, w, c] or tokens [b, t', h, w], computed tile by tile."""
    s = vae.space_compression
    canvas = _TileBlender(vae.image_size, blend=True)
    for rows, columns in _tile_grid(vae.grid, tile, overlap):
        shown = vae.decode(latents[:, :, rows, columns]).movedim(2, -1)
        height, width = (slice(place.start * s, place.stop * s) for place in (rows, columns))
        canvas.add(shown, height, width, overlap * s)
    return canvas.result().movedim(-1, 2)


class _TileBlender:
    """Where tiles [b, t, h, w, ...] come together: a weighted mean, or of tokens the one with the largest weight."""

    def __init__(self, size: tuple[int, int], blend: bool) -> None:
        self.size, self.blend = size, blend
        self.sum: Tensor | None = None

    def add(self, tile: Tensor, rows: slice, columns: slice, overlap: int) -> None:
        if self.sum is None:
            self.sum = tile.new_zeros(*tile.shape[:2], *self.size, *tile.shape[4:])
            dtype = tile.dtype if self.blend else torch.float32
            self.weight = torch.zeros(self.size, dtype=dtype, device=tile.device)
        ramps = (
            _blend_weights(place, length, overlap) for place, length in zip((rows, columns), self.size, strict=True)
        )
        weight = torch.outer(*ramps).to(self.weight)
        here = self.sum[:, :, rows, columns]
        if self.blend:
            here += tile * weight.view(*weight.shape, *[1] * (tile.ndim - 4))
            self.weight[rows, columns] += weight
        else:
            more = weight > self.weight[rows, columns]
            here.copy_(torch.where(more, tile, here))
            self.weight[rows, columns] = torch.where(more, weight, self.weight[rows, columns])

    def result(self) -> Tensor:
        assert self.sum is not None  # every grid has a tile
        return self.sum / self.weight.view(*self.size, *[1] * (self.sum.ndim - 4)) if self.blend else self.sum


def _with_tile_size(vae: CausalVAE, tile: int) -> CausalVAE:
    """The same network, the same weights, for frames of a tile's size."""
    part = copy.copy(vae)
    part.grid = (min(tile, vae.grid[0]), min(tile, vae.grid[1]))
    part.image_size = (part.grid[0] * vae.space_compression, part.grid[1] * vae.space_compression)
    return part


def _tile_grid(grid: tuple[int, int], tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than tile={tile}")
    return product(_tile_slices(grid[0], tile, overlap), _tile_slices(grid[1], tile, overlap))


def _tile_slices(length: int, tile: int, overlap: int) -> list[slice]:
    """Slices of ``tile`` that cover ``length``; the last one ends with it and overlaps more."""
    side = min(tile, length)
    starts = [*range(0, length - side, tile - overlap), length - side]
    return [slice(start, start + side) for start in starts]


def _blend_weights(place: slice, length: int, overlap: int) -> Tensor:
    """Weights of a slice: 1, falling linearly in the overlaps towards edges that are not the picture's own."""
    side = place.stop - place.start
    at = torch.arange(side) + 0.5
    left = at if place.start else torch.full_like(at, torch.inf)
    right = side - at if place.stop < length else torch.full_like(at, torch.inf)
    return torch.minimum(left, right).div(max(overlap, 1)).clamp(max=1.0)
