"""Which tokens a V-JEPA encoder sees and which ones it has to predict: multi-block masks in space and time.

Masks are a function of the clips' seeds, so that a resumed run, and one with another number of reading processes, draws
the same. Clips of a batch need equally many tokens: each gives up some at random, wherever they stand. (Index lists cut
in sorted order give up the end of every clip: V-JEPA's own code so drops a quarter of the tokens.)

Legend: b batch, t h w the grid of tokens, n = t*h*w of them in the order (t h w), k seen, m to predict, r draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_uniform

Grid = tuple[int, int, int]

MAX_MASK_DRAWS = 8
"""Places are drawn so many times a clip, and the first draw that leaves enough to see is taken."""


class TokenMask(NamedTuple):
    """What is seen and what is asked for.

    Attributes:
        keep: int64 [b, k], the tokens that the encoder sees.
        targets: one or more int64 [b, m], each predicted by a pass of its own.
    """

    keep: Tensor
    targets: tuple[Tensor, ...]


class MaskSampler(ABC):
    """A way to draw masks."""

    @abstractmethod
    def draw(self, seed: Tensor, grid: Grid) -> TokenMask:
        """Masks of a batch of clips.

        Args:
            seed: int64 [b], one a clip, on the CPU (counting tokens elsewhere would wait for the device).
            grid: tokens in time, height and width.

        Raises:
            ValueError: nothing can be left to see, or nothing to predict.
        """


class MultiBlockMaskSampler(MaskSampler):
    """Hide the union of some blocks, and predict all of it from all the rest (V-JEPA, arXiv 2404.08471, section 3.2).

    Args:
        blocks: how many.
        space: least and largest share of the picture that a block covers.
        time: least and largest share of the clip that it lasts.
        aspect: least and largest ratio of a block's height to its width.
        seen: share of the tokens that must stay visible, if eight draws can have it so.
    """

    def __init__(
        self,
        blocks: int = 8,
        space: tuple[float, float] = (0.15, 0.15),
        time: tuple[float, float] = (1.0, 1.0),
        aspect: tuple[float, float] = (0.75, 1.5),
        seen: float = 0.05,
    ) -> None:
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be 1 or more")
        for name, (low, high) in (("space", space), ("time", time)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}={low, high} must be shares in (0, 1], the lower one first")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect={aspect} must be ratios above 0, the lower one first")
        if not 0 < seen < 1:
            raise ValueError(f"seen={seen} must lie between 0 and 1")
        self.blocks, self.space, self.time, self.aspect, self.seen = blocks, space, time, aspect, seen

    def draw(self, seed: Tensor, grid: Grid) -> TokenMask:
        # One size a batch: the counts of its clips then differ little.
        size = sample_block_size(fold_in(seed[:1], 0), grid, self.space, self.time, self.aspect)
        hidden = sample_block_masks(fold_in(seed, 1), grid, size, MAX_MASK_DRAWS, self.blocks).any(dim=2).flatten(2)
        visible = (~hidden).sum(dim=2)  # [b, r]
        enough = visible >= max(1, math.ceil(self.seen * hidden.shape[2]))
        # The first draw that leaves enough, else the one that leaves most.
        best = torch.where(enough.any(1), enough.int().argmax(1), visible.argmax(1))
        hidden = hidden[torch.arange(len(seed)), best]
        order = fold_in(seed, 2)
        return TokenMask(
            subsample_equal_tokens(order, ~hidden, "see", grid),
            (subsample_equal_tokens(fold_in(order, 3), hidden, "predict", grid),),
        )


class ContextBlockMaskSampler(MaskSampler):
    """See one large block less some small ones, and predict each of these by itself (I-JEPA, arXiv 2301.08243, 3).

    Args:
        targets: how many small blocks.
        space, aspect: of a small block.
        context: least and largest share of the picture that the large block covers; it is as wide as high.
        time: least and largest share of the clip that all blocks last; an image is a clip of one.
    """

    def __init__(
        self,
        targets: int = 4,
        space: tuple[float, float] = (0.15, 0.2),
        aspect: tuple[float, float] = (0.75, 1.5),
        context: tuple[float, float] = (0.85, 1.0),
        time: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if targets < 1:
            raise ValueError(f"targets={targets} must be 1 or more")
        for name, (low, high) in (("space", space), ("context", context), ("time", time)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}={low, high} must be shares in (0, 1], the lower one first")
        self.targets, self.space, self.aspect, self.context, self.time = targets, space, aspect, context, time

    def draw(self, seed: Tensor, grid: Grid) -> TokenMask:
        small = sample_block_size(fold_in(seed[:1], 0), grid, self.space, self.time, self.aspect)
        large = sample_block_size(fold_in(seed[:1], 1), grid, self.context, self.time, (1.0, 1.0))
        targets = sample_block_masks(fold_in(seed, 2), grid, small, MAX_MASK_DRAWS, self.targets).flatten(
            3
        )  # [b, r, blocks, n]
        around = sample_block_masks(fold_in(seed, 3), grid, large, MAX_MASK_DRAWS, 1)[:, :, 0].flatten(2)
        seen = around & ~targets.any(dim=2)
        best = (seen.any(2).int()).argmax(1)  # the first draw that leaves anything
        pick = torch.arange(len(seed))
        seen, targets = seen[pick, best], targets[pick, best]
        aims = tuple(
            subsample_equal_tokens(fold_in(seed, 4 + i), target, "predict", grid)
            for i, target in enumerate(targets.unbind(1))
        )
        return TokenMask(subsample_equal_tokens(fold_in(seed, 4 + self.targets), seen, "see", grid), aims)


def sample_block_size(
    seed: Tensor, grid: Grid, space: tuple[float, float], time: tuple[float, float], aspect: tuple[float, float]
) -> Grid:
    """Sides of a block in tokens, drawn uniformly within the given shares and ratios; ``seed`` int64 [1]."""
    lots = seeded_uniform(seed, 3)[0].tolist()
    duration, share, ratio = (
        low + lot * (high - low) for lot, (low, high) in zip(lots, (time, space, aspect), strict=True)
    )
    t, h, w = grid
    area = share * h * w
    high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, int(duration * t)), min(h, max(1, high)), min(w, max(1, wide))


def sample_block_masks(seed: Tensor, grid: Grid, size: Grid, draws: int, blocks: int) -> Tensor:
    """Blocks of one size at places drawn uniformly: bool [b, draws, blocks, t, h, w], True within."""
    inside = []
    for axis, (length, side) in enumerate(zip(grid, size, strict=True)):
        start = (seeded_uniform(fold_in(seed, axis), draws, blocks) * (length - side + 1)).long()[..., None]
        place = torch.arange(length)
        inside.append((place >= start) & (place < start + side))
    time, rows, columns = inside
    return time[..., :, None, None] & rows[..., None, :, None] & columns[..., None, None, :]


def subsample_equal_tokens(seed: Tensor, members: Tensor, what: str, grid: Grid) -> Tensor:
    """Equally many members of each clip's set, drawn at random and in ascending order: int64 [b, least count].

    Raises:
        ValueError: a clip with none.
    """
    count = int(members.sum(dim=1).min())
    if count == 0:
        raise ValueError(
            f"a mask over a grid of {'x'.join(map(str, grid))} tokens leaves none to {what}: use fewer or smaller "
            "blocks, a smaller patch_size, or larger frames"
        )
    lots = torch.where(members, seeded_uniform(seed, members.shape[1]), 2.0)
    return lots.argsort(dim=1)[:, :count].sort(dim=1).values
