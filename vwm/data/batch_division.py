"""How a global batch is divided over ranks and, where it does not fit on them at once, over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from vwm.core.checks import check_positive


@dataclass(frozen=True)
class BatchDivision:
    """The division of every global batch into micro-batches, one for each rank at a time.

    Micro-batches take consecutive clips and differ by one clip at most, so that the number of ranks changes neither the
    clips of a global batch nor, with losses weighted by clips, their mean: 12 clips over 8 ranks are four times 2 clips
    and four times 1. Where there are more micro-batches than clips, some have none: they compute a clip of the global
    batch once more, with weight 0, because all ranks have to compute gradients equally often.

    Attributes:
        global_batch: clips of a step, of all ranks together.
        ranks: number of ranks that get clips of their own.
        limit: most clips that a rank computes at once.
    """

    global_batch: int
    ranks: int
    limit: int

    def __post_init__(self) -> None:
        check_positive(global_batch=self.global_batch, ranks=self.ranks, batch_size=self.limit)

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in a step."""
        return -(-self.global_batch // (self.ranks * self.limit))

    def clips(self, rank: int, index: int) -> range:
        """Return the clips of the global batch that a rank computes in its micro-batch ``index``; may be none."""
        parts, part = self.accumulation * self.ranks, index * self.ranks + rank
        return range(self.global_batch * part // parts, self.global_batch * (part + 1) // parts)

    def computed_clips(self, rank: int, index: int) -> range:
        """Return the same clips; one of weight 0 where there are none."""
        clips = self.clips(rank, index)
        return clips or range(max(clips.start - 1, 0), max(clips.start, 1))

    def weight(self, rank: int, index: int) -> float:
        """Return the factor of a micro-batch's mean loss.

        The mean over micro-batches and ranks of the weighted losses is the mean over the clips of the global batch.
        """
        return len(self.clips(rank, index)) * self.accumulation * self.ranks / self.global_batch
