"""Settings that every report of ``vwm eval`` shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipDataset


@dataclass(frozen=True)
class EvalSettings:
    """The clips that a simulator is evaluated on, and how.

    Attributes:
        data: shards of the clips.
        part: all episodes, or those that training with the default split trained on or held out.
        horizon: frames to predict, whole steps.
        context: context frames.
        clips: largest number of clips.
        batch_size: simulations that step together.
        seed: seed of the choice of clips, the simulations and the random actions.
    """

    data: str
    part: Literal["all", "train", "val"]
    horizon: int
    context: int
    clips: int
    batch_size: int
    seed: int

    @property
    def clip_length(self) -> int:
        """Frames of a clip: of the context and the horizon."""
        return self.context + self.horizon

    def dataset(self, *fields: str) -> ClipDataset:
        """Open the clips, in seeded order, with some of their fields."""
        return make_clip_dataset(
            self.data, self.clip_length, fields=fields, seed=self.seed, shuffle=True, split=self.part
        )

    def numbers(self) -> dict[str, int]:
        """Return the numeric settings, for the report."""
        return {
            "horizon": self.horizon,
            "context": self.context,
            "clips": self.clips,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
