"""Starting points of imagination in a recording: some frames, and the actions between them.

Legend: n contexts, t frames of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipBatch, ClipDataset, collate_clips
from vwm.data.datamodule import make_clip_dataset
from vwm.data.shard_reading import read_array


class SimulatorContext(NamedTuple):
    """What a simulator is reset with.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        actions: int64 [n, t - 1] or float32 [n, t - 1, a], those between the frames; None where they are unknown.
        uniform: bool [n], whether it was drawn evenly from all of the recording.
    """

    frames: Tensor
    actions: Tensor | None
    uniform: Tensor


class ContextSampler:
    """Draws contexts uniformly from a recording, or only those that are soon followed by a reward.

    Dreamer 4 (arXiv 2509.24527, section 3.3) imagines half from all of its data and half from data relevant to
    the task.

    Args:
        data: the recording; see ``vwm.data.datamodule.VideoDataModule``.
        length: t.
        horizon: a time step is relevant where one of the next ``horizon`` actions was rewarded.
        relevant: fraction of the contexts that is drawn from relevant time steps only.
        actions: whether to read the actions.

    Raises:
        ValueError: no episode is long enough; ``relevant`` is no share below 1, or nothing in the recording is.
    """

    def __init__(self, data: str, length: int, horizon: int, relevant: float = 0.0, actions: bool = True) -> None:
        if not 0 <= relevant < 1:
            raise ValueError(f"relevant must be a share from 0 to below 1, got {relevant}")
        self.clips = make_clip_dataset(
            data, length, fields=("frames", "actions") if actions else ("frames",), shuffle=False
        )
        self.relevant = relevant
        self.episodes = [(s, e) for s, shard in enumerate(self.clips.shards) for e in range(len(shard.episodes))]
        frames = [self.clips.shards[s].episodes[e].frames for s, e in self.episodes]
        self.ends = np.maximum(np.array(frames) - length + 1, 0).cumsum()
        self.rewarded = self._rewarded(horizon) if relevant else np.zeros(0, np.int64)

    def draw(self, count: int) -> SimulatorContext:
        """Contexts, by torch's generator: the evenly drawn ones first, of which there is at least one."""
        special = min(round(self.relevant * count), count - 1)
        places = torch.randint(int(self.ends[-1]), (count - special,)).numpy()
        if special:
            chosen = torch.randint(len(self.rewarded), (special,)).numpy()
            places = np.concatenate((places, self.rewarded[chosen]))
        clips = self._read(places)
        actions = None if clips.actions is None else clips.actions[:, :-1]
        return SimulatorContext(clips.frames, actions, torch.arange(count) < count - special)

    def spread(self, most: int) -> Tensor:
        """Frames of contexts at even distances over the recording, and over its relevant moments by their share.

        Args:
            most: how many; fewer where the recording has no more.

        Returns:
            uint8 [n, t, h, w, 3].
        """
        special = self.rewarded[_evenly_spaced_indices(len(self.rewarded), round(self.relevant * most))]
        places = np.concatenate((_evenly_spaced_indices(int(self.ends[-1]), most - len(special)), special))
        return self._read(places).frames

    def _read(self, places: NDArray[np.int64]) -> ClipBatch:
        return collate_clips([self.clips.read(self._address(int(place))) for place in places])

    def _address(self, place: int) -> ClipAddress:
        """The clip of a number: all beginnings of the first episode, of the second, ..."""
        episode = int(np.searchsorted(self.ends, place, side="right"))
        before = int(self.ends[episode - 1]) if episode else 0
        return ClipAddress(*self.episodes[episode], place - before, 0)

    def _rewarded(self, horizon: int) -> NDArray[np.int64]:
        """Numbers of the clips after whose last frame something is earned within the horizon."""
        starts = np.diff(self.ends, prepend=0)
        near = [
            rewarded_within(_read_episode_rewards(self.clips, s, e), horizon)[self.clips.clip_length - 1 :][:count]
            for (s, e), count in zip(self.episodes, starts, strict=True)
        ]
        found = np.flatnonzero(np.concatenate(near))
        if not len(found):
            raise ValueError("nothing was ever earned in this recording: relevant=0 imagines from all of it alike")
        return found


def _evenly_spaced_indices(size: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the numbers below ``size``, at even distances."""
    return np.linspace(0, size - 1, min(most, size)).round().astype(np.int64)


def rewarded_within(rewards: NDArray[np.float32], horizon: int) -> NDArray[np.bool_]:
    """Where one of the next ``horizon`` rewards, the present action's the first, is not 0: [T] -> bool [T]."""
    earned = np.concatenate(([0], (rewards != 0).cumsum()))
    here = np.arange(len(rewards))
    return earned[np.minimum(here + horizon, len(rewards))] > earned[here]


def _read_episode_rewards(clips: ClipDataset, shard: int, episode: int) -> NDArray[np.float32]:
    path, entry = clips.paths[shard], clips.shards[shard].episodes[episode]
    if "rewards.npy" not in entry.members:
        raise ValueError(f"{path}: episode {entry.key!r} has no rewards to tell what is relevant: set relevant=0")
    rewards: NDArray[np.float32] = read_array(path, entry, "rewards")
    return rewards
