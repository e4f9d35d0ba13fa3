"""Sample the tokens that a V-JEPA encoder sees and those that are predicted: multi-block masks in space and time.

Masks are a function of the seeds of the clips and of the step, so that they do not depend on resuming or on the number
of workers or processes. The clips of a global batch need equal numbers of tokens, so tokens are dropped at random from
clips that have more. (V-JEPA's own code truncates sorted index lists, which always drops the end of a clip, a quarter
of the tokens.)

Legend: b batch, t h w grid of tokens, n = t*h*w tokens in this order, k context tokens, m target tokens, r draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.ranks import least_of_ranks

Grid = tuple[int, int, int]

MAX_MASK_DRAWS = 8
"""Number of draws of block positions per clip; the first draw that leaves enough context is used."""


class TokenMask(NamedTuple):
    """Context and target tokens of clips.

    Attributes:
        context_indices: int64 [b, k], indices of the tokens that the encoder sees.
        target_indices: one or more int64 [b, m], each predicted by its own pass of the predictor.
    """

    context_indices: Tensor
    target_indices: tuple[Tensor, ...]


class MaskSampler(ABC):
    """A distribution of masks."""

    @abstractmethod
    def sample(self, seed: Tensor, grid: Grid, batch_seed: Tensor | None = None) -> TokenMask:
        """Sample masks of a batch of clips.

        Args:
            seed: int64 [b], one per clip, on the CPU (counting tokens on an accelerator would synchronize).
            grid: number of tokens in time, height and width.
            batch_seed: int64 [1], of what all clips of the global batch share, on the CPU; None for the first clip's.

        Raises:
            ValueError: no token is left as context, or as target.
        """


class MultiBlockMaskSampler(MaskSampler):
    """Mask the union of blocks and predict it from all other tokens (V-JEPA, arXiv 2404.08471, section 3.2).

    Args:
        num_blocks: number of blocks.
        spatial_scale: range of the share of the frame that a block covers.
        temporal_scale: range of the share of the clip that a block covers.
        aspect_ratio: range of the ratio of height to width of a block.
        min_context_ratio: share of the tokens that must remain as context, if one of the draws allows it.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        num_blocks: int = 8,
        spatial_scale: tuple[float, float] = (0.15, 0.15),
        temporal_scale: tuple[float, float] = (1.0, 1.0),
        aspect_ratio: tuple[float, float] = (0.75, 1.5),
        min_context_ratio: float = 0.05,
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks={num_blocks} must be at least 1")
        _check_scales(spatial_scale=spatial_scale, temporal_scale=temporal_scale)
        _check_aspect_ratio("aspect_ratio", aspect_ratio)
        if not 0 < min_context_ratio < 1:
            raise ValueError(f"min_context_ratio={min_context_ratio} must be between 0 and 1")
        self.num_blocks = num_blocks
        self.spatial_scale = spatial_scale
        self.temporal_scale = temporal_scale
        self.aspect_ratio = aspect_ratio
        self.min_context_ratio = min_context_ratio

    def sample(self, seed: Tensor, grid: Grid, batch_seed: Tensor | None = None) -> TokenMask:
        # One block size per batch, so that the numbers of tokens of the clips differ little.
        shared = fold_in(seed[:1] if batch_seed is None else batch_seed, 0)
        size = sample_block_size(shared, grid, self.spatial_scale, self.temporal_scale, self.aspect_ratio)
        blocks = sample_block_masks(fold_in(seed, 1), grid, size, draws=MAX_MASK_DRAWS, blocks=self.num_blocks)
        masked = blocks.any(dim=2).flatten(2)  # [b, r, n]
        num_context = (~masked).sum(dim=2)
        enough = num_context >= max(1, math.ceil(self.min_context_ratio * masked.shape[2]))
        # The first draw that leaves enough context, otherwise the draw that leaves most.
        best = torch.where(enough.any(1), enough.int().argmax(1), num_context.argmax(1))
        masked = masked[torch.arange(len(seed)), best]
        order = fold_in(seed, 2)
        return TokenMask(
            subsample_equal_tokens(order, ~masked, "see", grid),
            (subsample_equal_tokens(fold_in(order, 3), masked, "predict", grid),),
        )


class ContextBlockMaskSampler(MaskSampler):
    """Predict each of several target blocks from one context block without them (I-JEPA, arXiv 2301.08243, section 3).

    Args:
        num_targets: number of target blocks.
        target_scale: range of the share of the frame that a target block covers.
        target_aspect_ratio: range of the ratio of height to width of a target block.
        context_scale: range of the share of the frame that the square context block covers.
        temporal_scale: range of the share of the clip that each block covers; an image is a clip of one frame.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        num_targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        temporal_scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if num_targets < 1:
            raise ValueError(f"num_targets={num_targets} must be at least 1")
        _check_scales(target_scale=target_scale, context_scale=context_scale, temporal_scale=temporal_scale)
        _check_aspect_ratio("target_aspect_ratio", target_aspect_ratio)
        self.num_targets = num_targets
        self.target_scale = target_scale
        self.target_aspect_ratio = target_aspect_ratio
        self.context_scale = context_scale
        self.temporal_scale = temporal_scale

    def sample(self, seed: Tensor, grid: Grid, batch_seed: Tensor | None = None) -> TokenMask:
        shared = seed[:1] if batch_seed is None else batch_seed
        target_size = sample_block_size(
            fold_in(shared, 0), grid, self.target_scale, self.temporal_scale, self.target_aspect_ratio
        )
        context_size = sample_block_size(fold_in(shared, 1), grid, self.context_scale, self.temporal_scale, (1.0, 1.0))
        targets = sample_block_masks(
            fold_in(seed, 2), grid, target_size, draws=MAX_MASK_DRAWS, blocks=self.num_targets
        ).flatten(3)  # [b, r, targets, n]
        context = sample_block_masks(fold_in(seed, 3), grid, context_size, draws=MAX_MASK_DRAWS, blocks=1)
        context = context[:, :, 0].flatten(2) & ~targets.any(dim=2)
        best = (context.any(2).int()).argmax(1)  # the first draw that leaves any context
        clips = torch.arange(len(seed))
        context, targets = context[clips, best], targets[clips, best]
        target_indices = tuple(
            subsample_equal_tokens(fold_in(seed, 4 + i), target, "predict", grid)
            for i, target in enumerate(targets.unbind(1))
        )
        context_indices = subsample_equal_tokens(fold_in(seed, 4 + self.num_targets), context, "see", grid)
        return TokenMask(context_indices, target_indices)


def _check_scales(**scales: tuple[float, float]) -> None:
    for name, (low, high) in scales.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name}={low, high} must be a range of shares within (0, 1]")


def _check_aspect_ratio(name: str, value: tuple[float, float]) -> None:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"{name}={value} must be a range of positive ratios")


def sample_block_size(
    seed: Tensor,
    grid: Grid,
    spatial_scale: tuple[float, float],
    temporal_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
) -> Grid:
    """Sample the sides of a block in tokens, uniformly within the given ranges; ``seed`` int64 [1]."""
    ranges = (temporal_scale, spatial_scale, aspect_ratio)
    uniform = seeded_uniform(seed, 3)[0].tolist()
    duration, share, ratio = (low + u * (high - low) for u, (low, high) in zip(uniform, ranges, strict=True))
    t, h, w = grid
    area = share * h * w
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, int(duration * t)), min(h, max(1, height)), min(w, max(1, width))


def sample_block_masks(seed: Tensor, grid: Grid, size: Grid, draws: int, blocks: int) -> Tensor:
    """Sample blocks of one size at uniform positions: bool [b, draws, blocks, t, h, w], True inside a block."""
    inside = []
    for axis, (length, side) in enumerate(zip(grid, size, strict=True)):
        start = (seeded_uniform(fold_in(seed, axis), draws, blocks) * (length - side + 1)).long()[..., None]
        position = torch.arange(length)
        inside.append((position >= start) & (position < start + side))
    time, rows, columns = inside
    return time[..., :, None, None] & rows[..., None, :, None] & columns[..., None, None, :]


def subsample_equal_tokens(seed: Tensor, selected: Tensor, purpose: str, grid: Grid) -> Tensor:
    """Subsample the selected tokens, bool [b, n], to the smallest number of a clip: sorted indices int64 [b, count].

    The smallest number is that of all processes that train together.

    Raises:
        ValueError: a clip has no selected token.
    """
    (count,) = least_of_ranks([int(selected.sum(dim=1).min())])
    if count == 0:
        raise ValueError(
            f"a mask over a grid of {'x'.join(map(str, grid))} tokens leaves none to {purpose}: use fewer or smaller "
            "blocks, a smaller patch_size, or larger frames"
        )
    keys = torch.where(selected, seeded_uniform(seed, selected.shape[1]), 2.0)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values
