"""What a rank computes at once, as a part of the global batch of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """A part of a global batch.

    Attributes:
        clips: its clips; fewer than were read where one fills up a part without clips.
        weight: factor of its mean loss; the mean of all weighted losses of a step is the mean over its clips.
        share: its share of the rank's micro-batches in a step.
        first: whether it is the rank's first in the step.
        position: of its first clip in the global batch.
    """

    clips: int
    weight: float
    share: float
    first: bool
    position: int


class StepMetrics:
    """Sums metrics over the micro-batches of a rank, so that their mean over ranks is that over a global batch."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], part: MicroBatch) -> dict[str, Tensor]:
        """Add the means of a micro-batch, and return the sums of this step so far."""
        if part.first:
            self._sums = {}
        for name, value in values.items():
            weighted = value.detach() * (part.weight * part.share)
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        return dict(self._sums)
