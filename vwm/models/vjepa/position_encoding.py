"""Where tokens stand in a clip: rotary positions along time, rows and columns, or fixed sines and cosines.

A token's number counts along time first, then rows, then columns. Tables are made once a grid, dtype and device, in
float64, and the rows of the tokens that are seen are gathered from them; a network that recomputes them in every layer
spends more on them than on its attention.

Legend: b batch, n tokens of the whole clip, k tokens that are seen, d width, c channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vwm.nn.attention import rotary_angles

PositionEncodingType = Literal["rope", "sincos"]
TokenGrid = tuple[int, int, int]


class RotaryTables(NamedTuple):
    """How pairs of neighbouring channels turn: [n, c], or [b, k, c] of some tokens; see ``apply_rotary_tables``."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class PositionEncoding:
    """The positions that a network uses.

    Attributes:
        kind: ``"rope"``: queries and keys turn by their token's position, a third of a head's channels an axis
            (V-JEPA 2, arXiv 2506.09985, section 2.1); ``"sincos"``: sines and cosines join the tokens before the first
            layer (V-JEPA, arXiv 2404.08471, appendix A).
        width: d.
        heads: attention heads.
        tiled: of rope, as the released V-JEPA 2 weights have it: within an axis channel i turns with frequency
            i mod c/6, so that the two channels of a pair have different ones. That is no rotation, and positions count
            not only by their difference, but those weights have learned it.
        uniform_power: of sincos, as many channels for each axis; otherwise half of them are for time.
        spread: of rope, (rows, columns) over which the places of a picture of any size are spread evenly (V-JEPA 2.1,
            arXiv 2603.14482); None counts them.
    """

    kind: PositionEncodingType
    width: int
    heads: int
    tiled: bool = False
    uniform_power: bool = False
    spread: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(PositionEncodingType):
            raise ValueError(f"positions={self.kind!r} must be one of {', '.join(get_args(PositionEncodingType))}")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        channels = self.width // self.heads
        if self.kind == "rope" and (channels % 2 or channels < 6):
            raise ValueError(f"heads={self.heads} of width={self.width} have {channels} channels: rope needs 6, 8, ...")
        if self.kind == "sincos" and self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 with sincos positions")

    def added(self, grid: TokenGrid, like: Tensor, numbers: Tensor | None = None) -> Tensor | None:
        """What joins the tokens: [n, d], or [b, k, d] of those with the ``numbers`` int64 [b, k]; None with rope."""
        if self.kind == "rope":
            return None
        table = _sincos_table(grid, self.width, self.uniform_power, like.dtype, like.device)
        return table if numbers is None else table[numbers]

    def rotary(self, grid: TokenGrid, like: Tensor, numbers: Tensor | None = None) -> RotaryTables | None:
        """By what queries and keys turn: [n, c], or [b, k, c] of those with the ``numbers``; None with sincos."""
        if self.kind == "sincos":
            return None
        table = _rotary_tables(grid, self.width // self.heads, self.tiled, self.spread, like.dtype, like.device)
        return table if numbers is None else RotaryTables(table.cos[numbers], table.sin[numbers])


def apply_rotary_tables(x: Tensor, by: RotaryTables) -> Tensor:
    """Turn [b, k, ..., c]; the first of a pair gets -sin of the second, which stands in the table's sign."""
    between = (1,) * (x.ndim - 3)
    cos, sin = (table.to(x.dtype).reshape(*table.shape[:-1], *between, table.shape[-1]) for table in by)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((second, first), dim=-1).flatten(-2) * sin


def token_coordinates(grid: TokenGrid, device: torch.device | None = None) -> Tensor:
    """int64 [n, 3]: time, row and column of every token."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


# Validation runs in inference mode; a table made there could not be used in training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rotary_tables(
    grid: TokenGrid,
    channels: int,
    tiled: bool,
    spread: tuple[int, int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> RotaryTables:
    """[n, c] each; channels that three equal even parts leave over do not turn."""
    places = token_coordinates(grid, device).double()
    if spread is not None:
        for axis, (size, over) in enumerate(zip(grid[1:], spread, strict=True), start=1):
            places[:, axis] *= (over - 1) / max(1, size - 1)
    pairs = channels // 6
    turns = rotary_angles(places, pairs, 10000)  # [n, 3, pairs]
    turns = turns.repeat(1, 1, 2) if tiled else turns.repeat_interleave(2, dim=-1)
    turns = torch.nn.functional.pad(turns.flatten(1), (0, channels - 6 * pairs))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=device).repeat(channels // 2)
    return RotaryTables(turns.cos().to(dtype), (sign * turns.sin()).to(dtype))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _sincos_table(grid: TokenGrid, width: int, uniform_power: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[n, d]: sines, then cosines, of time; then of rows; then of columns."""
    even = 2 * -(-width // 6)
    sizes = (even, even, even) if uniform_power else (width // 2, width // 4, width // 4)
    waves = []
    for axis, size in zip(token_coordinates(grid, device).unbind(-1), sizes, strict=True):
        turns = rotary_angles(axis, size // 2, 10000)
        waves += [turns.sin(), turns.cos()]
    return torch.cat(waves, dim=-1)[:, :width].to(dtype)
