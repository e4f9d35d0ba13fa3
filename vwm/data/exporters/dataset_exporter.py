"""What the writer of a foreign format does: one shard after the other, in any process, and an end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from vwm.data.episode_entry import EpisodeIndexEntry


@dataclass(frozen=True)
class ExportShard:
    """A shard to convert: the unit of work.

    Attributes:
        path: of the shard.
        number: of the shards that have episodes, from 0.
        first_episode, first_frame: episodes and frames of the shards before.
        episodes: entries of its index.
    """

    path: str
    number: int
    first_episode: int
    first_frame: int
    episodes: tuple[EpisodeIndexEntry, ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(entry.frames for entry in self.episodes)


class DatasetExporter(ABC):
    """Writes shards in a foreign format.

    Args:
        out: folder of the data set.
        shards: all of them, in order.
        fps: frames per second of episodes that do not state them.

    Raises:
        ValueError: the format cannot hold these episodes.
    """

    def __init__(self, out: Path, shards: list[ExportShard], fps: float | None) -> None:
        self.out = out
        self.shards = shards
        self.fps = fps

    @abstractmethod
    def is_written(self, shard: ExportShard) -> bool:
        """Whether a shard was converted completely."""

    @abstractmethod
    def write(self, shard: ExportShard) -> None:
        """Convert a shard; ``is_written`` afterwards, and only then.

        Raises:
            ValueError: an episode cannot be read, or does not fit the others.
        """

    def begin(self) -> None:
        """Prepare the folder before shards are written into it."""
        return None

    def finish(self) -> None:
        """Write what describes all shards."""
        return None
