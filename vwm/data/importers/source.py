"""What the reader of a foreign data set gives: episodes, in the units of their data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SourceEpisode:
    """One episode of a foreign data set, aligned as in ``vwm.data.episode``.

    Attributes:
        length: number of frames, T.
        iterate_frames: yields the frames of a camera in order, uint8 [H, W, 3].
        actions: int64 [T], or float [T, A] in the units of the data set; None if unknown.
        rewards: float [T]. None if unknown.
        state: float [T, S]. None if unknown.
        terminated: the environment ended after the last frame.
        fps: frames per second; None if unknown.
        meta: further metadata, such as ``task``, the instruction in words.
    """

    length: int
    iterate_frames: Callable[[str], Iterator[NDArray[np.uint8]]]
    actions: NDArray[Any] | None = None
    rewards: NDArray[Any] | None = None
    state: NDArray[Any] | None = None
    terminated: bool = False
    fps: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionBounds:
    """Lowest and highest value of each dimension of continuous actions, [A] each, in the units of the data set."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def join(cls, bounds: Sequence[ActionBounds]) -> ActionBounds:
        """Return the bounds of data of which parts have these bounds; one part or more.

        Parts with another number of dimensions than the first one do not count; ``normalize`` names them.
        """
        bounds = [b for b in bounds if b.low.shape == bounds[0].low.shape]
        return cls(np.min([b.low for b in bounds], axis=0), np.max([b.high for b in bounds], axis=0))

    @classmethod
    def of(cls, actions: NDArray[Any]) -> ActionBounds:
        """Return the bounds of actions [T, A]."""
        return cls(actions.min(0).astype(np.float64), actions.max(0).astype(np.float64))

    def normalize(self, actions: NDArray[Any]) -> NDArray[np.float32]:
        """Scale actions [T, A] so that the bounds become -1 and 1; a dimension that never changes becomes 0.

        Raises:
            ValueError: an action lies out of the bounds, is not finite, or has another number of dimensions.
        """
        if actions.shape[1:] != self.low.shape:
            raise ValueError(f"its actions are {list(actions.shape)}, those of other episodes [T, {len(self.low)}]")
        values = actions.astype(np.float64)
        slack = 1e-5 * (self.high - self.low) + 1e-6 * np.abs(self.high)  # statistics are stored in float32
        outside = ~((values >= self.low - slack) & (values <= self.high + slack))
        if outside.any():
            frame, dimension = np.argwhere(outside)[0]
            raise ValueError(
                f"dimension {dimension} of its actions is {values[frame, dimension]:g} at frame {frame}, outside of "
                f"the bounds that the data set states ({self.low[dimension]:g} to {self.high[dimension]:g})"
            )
        half = (self.high - self.low) / 2
        scaled = (values - (self.high + self.low) / 2) / np.where(half > 0, half, np.inf)
        return np.clip(scaled, -1, 1).astype(np.float32)


class EpisodeSource(ABC):
    """A foreign data set. Opening one reads its description only, since every worker process opens it.

    Attributes:
        cameras: names of the cameras, or whatever shows frames.
        action_names, state_names: names of the dimensions of continuous actions and of states; empty if unknown.
    """

    cameras: tuple[str, ...]
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()

    def use(self, cameras: tuple[str, ...]) -> None:
        """Take the choice of cameras, before ``read``: some data sets have actions of their own for each."""
        return None

    @abstractmethod
    def episode_names(self) -> list[str]:
        """Return the names of all episodes, in order; those of earlier episodes stay when others are added."""

    @abstractmethod
    def read(self, name: str) -> SourceEpisode:
        """Return an episode.

        Raises:
            ValueError, OSError: it cannot be read.
        """

    def is_gone(self, name: str) -> bool:
        """Return whether a name stood for a file that could not be listed, and now can be by other names."""
        return False

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of continuous actions in all episodes; None where actions are discrete or unknown."""
        return None


@dataclass(frozen=True)
class EpisodeSummary:
    """What is known of an episode before its frames and values are read.

    Attributes:
        length: number of frames, T.
        fingerprint: text that changes with the episode's content, such as names and sizes of its files.
    """

    length: int
    fingerprint: str


class SeekableSource(EpisodeSource):
    """A foreign data set of which any frames are read without those before them, so that it needs no conversion.

    ``read`` reads the values of an episode, and none of its frames before they are iterated. All episodes have the same
    fields. Sources may be used on both sides of a fork: they keep no file open from one call to the next.
    """

    @abstractmethod
    def summarize(self) -> dict[str, EpisodeSummary]:
        """Return what is known of every episode by its name, in the order of ``episode_names``."""

    @abstractmethod
    def files_of(self, name: str, cameras: Sequence[str]) -> list[Path]:
        """Return the files that hold an episode, as these cameras show it; others may lie in them, too."""

    @abstractmethod
    def read_frames(self, name: str, camera: str, indices: Sequence[int]) -> Iterable[NDArray[np.uint8]]:
        """Return frames of an episode by their indices, which ascend: uint8 [H, W, 3] each.

        Raises:
            ValueError, OSError: they cannot be read.
        """
