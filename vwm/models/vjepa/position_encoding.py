"""Position encodings of the tokens of a clip: rotary along time, rows and columns, or fixed sines and cosines.

Tokens are indexed in the order (time, row, column). Tables are computed in float64 and cached for each grid, dtype and
device; the rows of selected tokens are gathered from them. Computing them in each layer would take longer than the
attention.

Legend: b batch, n tokens of the whole clip, k selected tokens, d width, c channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.nn.attention import rotary_angles

PositionEncodingType = Literal["rope", "sincos"]
TokenGrid = tuple[int, int, int]


class RotaryTables(NamedTuple):
    """Rotations of pairs of adjacent channels, [n, c] or [b, k, c] for selected tokens; see ``apply_rotary_tables``."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class PositionEncoding:
    """The position encoding of a network.

    Attributes:
        kind: ``"rope"``: rotate queries and keys, with a third of the channels of a head per axis (V-JEPA 2, arXiv
            2506.09985, section 2.1); ``"sincos"``: add sines and cosines to the tokens before the first layer (V-JEPA,
            arXiv 2404.08471, appendix A).
        width: d.
        heads: number of attention heads.
        tiled: for rope, use the frequencies of the released V-JEPA 2 weights: along an axis, channel i has frequency
            i mod c/6, so that the two channels of a pair have different frequencies. This is not a rotation and not
            purely relative, but these weights were trained with it.
        uniform_power: for sincos, use equal numbers of channels per axis; otherwise half of the channels encode time.
        reference_grid: for rope, (rows, columns) to which the positions of frames of any size are scaled (V-JEPA 2.1,
            arXiv 2603.14482); None uses the indices of rows and columns.

    Raises:
        ValueError: an unknown kind, or a width that does not fit it.
    """

    kind: PositionEncodingType
    width: int
    heads: int
    tiled: bool = False
    uniform_power: bool = False
    reference_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.reference_grid is not None:  # JSON has lists for tuples
            rows, columns = self.reference_grid
            object.__setattr__(self, "reference_grid", (int(rows), int(columns)))
        if self.kind not in get_args(PositionEncodingType):
            raise ValueError(f"positions={self.kind!r} must be one of {', '.join(get_args(PositionEncodingType))}")
        check_positive(width=self.width, heads=self.heads)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        channels = self.width // self.heads
        if self.kind == "rope" and (channels % 2 or channels < 6):
            raise ValueError(
                f"heads={self.heads} of width={self.width} have {channels} channels each: rope needs 6, 8, 10, ..."
            )
        if self.kind == "sincos" and self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 with sincos positions")

    def additive_embedding(self, grid: TokenGrid, like: Tensor, token_indices: Tensor | None = None) -> Tensor | None:
        """Embedding to add to the tokens, [n, d], or [b, k, d] for ``token_indices`` int64 [b, k]; None with rope.

        It has the dtype and device of ``like``.
        """
        if self.kind == "rope":
            return None
        table = _sincos_table(grid, self.width, self.uniform_power, like.dtype, like.device)
        return table if token_indices is None else table[token_indices]

    def rotary_tables(self, grid: TokenGrid, like: Tensor, token_indices: Tensor | None = None) -> RotaryTables | None:
        """Rotations of queries and keys, [n, c], or [b, k, c] for ``token_indices``; None with sincos."""
        if self.kind == "sincos":
            return None
        table = _rotary_tables(grid, self.width // self.heads, self.tiled, self.reference_grid, like.dtype, like.device)
        return table if token_indices is None else RotaryTables(table.cos[token_indices], table.sin[token_indices])


def apply_rotary_tables(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate channel pairs of [b, k, ..., c]. The sine table contains the sign: negative for the first of a pair."""
    middle = (1,) * (x.ndim - 3)
    cos, sin = (table.to(x.dtype).reshape(*table.shape[:-1], *middle, table.shape[-1]) for table in tables)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((second, first), dim=-1).flatten(-2) * sin


def token_coordinates(grid: TokenGrid, device: torch.device | None = None) -> Tensor:
    """Time, row and column of each token: int64 [n, 3]."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotary_tables_at(coordinates: Tensor, channels: int, tiled: bool, dtype: torch.dtype) -> RotaryTables:
    """Tables [..., c] for tokens at coordinates [..., 3]: time, row and column.

    Channels beyond three equal, even parts are not rotated. ``tiled``: see ``PositionEncoding``.
    """
    pairs = channels // 6
    angles = rotary_angles(coordinates, pairs, 10000)  # [..., 3, pairs]
    angles = torch.cat((angles, angles), dim=-1) if tiled else angles.repeat_interleave(2, dim=-1)
    angles = torch.nn.functional.pad(angles.flatten(-2), (0, channels - 6 * pairs))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=coordinates.device).repeat(channels // 2)
    return RotaryTables(angles.cos().to(dtype), (sign * angles.sin()).to(dtype))


# Not in inference mode, in which validation runs: tensors created there cannot be used in training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rotary_tables(
    grid: TokenGrid,
    channels: int,
    tiled: bool,
    reference_grid: tuple[int, int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> RotaryTables:
    """Tables [n, c] of a grid; see ``rotary_tables_at``."""
    coordinates = token_coordinates(grid, device).double()
    if reference_grid is not None:
        for axis, (size, reference) in enumerate(zip(grid[1:], reference_grid, strict=True), start=1):
            coordinates[:, axis] *= (reference - 1) / max(1, size - 1)
    return rotary_tables_at(coordinates, channels, tiled, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _sincos_table(grid: TokenGrid, width: int, uniform_power: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Table [n, d]: sines and cosines of time, then of rows, then of columns."""
    even = 2 * -(-width // 6)
    sizes = (even, even, even) if uniform_power else (width // 2, width // 4, width // 4)
    waves = []
    for axis, size in zip(token_coordinates(grid, device).unbind(-1), sizes, strict=True):
        angles = rotary_angles(axis, size // 2, 10000)
        waves += [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=-1)[:, :width].to(dtype)
