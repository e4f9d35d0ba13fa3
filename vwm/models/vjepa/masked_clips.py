"""Batches with masks, and batches of videos and images, which the encoder sees in passes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.data.clips import ClipBatch
from vwm.models.vjepa.masking import TokenMask


class MaskedPart(NamedTuple):
    """The clips of a batch that are videos, or those that are images.

    Attributes:
        rows: int64 [p], which clips of the batch; never none, see ``split_stills``.
        masks: of these clips.
        share: of the batch, by which their loss counts.
    """

    rows: Tensor
    masks: list[TokenMask]
    share: float


@dataclass
class MaskedClips(ClipBatch):
    """Clips and their masks; of videos and images apart, ``masks`` is None and the parts have their own."""

    masks: list[TokenMask] | None = None
    videos: MaskedPart | None = None
    images: MaskedPart | None = None

    @property
    def indivisible(self) -> bool:
        """Whether its parts name clips by their rows, so that it cannot be cut to its first clips."""
        return self.videos is not None


def split_stills(still: Tensor) -> tuple[Tensor, Tensor, float]:
    """Divide the clips of a batch into videos and images.

    Where there is none of one kind, the first clip stands in for it and counts nothing, because every process of a
    training must run the same passes.

    Args:
        still: bool [b], on the CPU; see ``ClipBatch.still``.

    Returns:
        int64 rows of the videos and of the images, and the share of the images in the batch.
    """
    rows = torch.arange(len(still))
    videos, images = rows[~still], rows[still]
    share = len(images) / len(still)
    return (videos if len(videos) else rows[:1]), (images if len(images) else rows[:1]), share
