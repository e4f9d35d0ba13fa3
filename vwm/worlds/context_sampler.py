"""Contexts that imagination starts from, sampled from a recording: some frames, and the actions between them.

The same draws as whole clips are what a world goes on learning from, where it is also learned from new frames.

Legend: n contexts, t frames of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipBatch, ClipDataset, collate_clips
from vwm.data.shard_reading import is_terminated, read_array


class SimulatorContext(NamedTuple):
    """What a simulator is reset with.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        actions: int64 [n, t - 1] or float32 [n, t - 1, a], those between the frames; None where they are unknown.
        sampled_uniformly: bool [n], whether it was drawn uniformly from the whole recording.
    """

    frames: Tensor
    actions: Tensor | None
    sampled_uniformly: Tensor


class ContextSampler:
    """Draws contexts uniformly from a recording, or only those that are soon followed by a reward.

    Dreamer 4 (arXiv 2509.24527, section 3.3) imagines half from all of its data and half from data relevant to
    the task.

    Args:
        data: the recording; see ``vwm.data.datamodule.VideoDataModule``.
        length: t.
        horizon: a context counts as rewarded where one of the ``horizon`` actions after its last frame was rewarded.
        rewarded_fraction: fraction of the contexts that is drawn from the rewarded ones only.
        actions: whether to read the actions.
        outcomes: whether to read rewards and terminations, for ``sample_clips``.
        past_ends: whether clips may run past the end of an episode that terminated, so that an end may be at any place;
            see ``ClipBatch``.

    Raises:
        ValueError: no episode is long enough, ``rewarded_fraction`` is out of range, or nothing in the recording was
            rewarded.
    """

    def __init__(
        self,
        data: str,
        length: int,
        horizon: int,
        rewarded_fraction: float = 0.0,
        actions: bool = True,
        outcomes: bool = False,
        past_ends: bool = False,
    ) -> None:
        if not 0 <= rewarded_fraction < 1:
            raise ValueError(f"rewarded_fraction must lie from 0 to below 1, got {rewarded_fraction}")
        fields = ("frames", *(("actions",) if actions else ()), *(("rewards", "terminated") if outcomes else ()))
        self.clips = make_clip_dataset(data, length, fields=fields, shuffle=False)
        self.rewarded_fraction = rewarded_fraction
        self.episodes = [(s, e) for s, shard in enumerate(self.clips.shards) for e in range(len(shard.episodes))]
        self.cumulative_clip_counts = np.array([self._count_clips(s, e, past_ends) for s, e in self.episodes]).cumsum()
        self.rewarded_clips = self._find_rewarded_clips(horizon) if rewarded_fraction else np.zeros(0, np.int64)

    def sample(self, count: int) -> SimulatorContext:
        """Sample contexts with torch's generator: the uniform ones first, of which there is at least one."""
        clips = self.sample_clips(count)
        actions = None if clips.actions is None else clips.actions[:, :-1]
        return SimulatorContext(clips.frames, actions, torch.arange(count) < count - self._num_rewarded(count))

    def sample_clips(self, count: int) -> ClipBatch:
        """Sample the clips of ``sample``, with the actions at their last frames and what those lead to."""
        num_rewarded = self._num_rewarded(count)
        clip_indices = torch.randint(int(self.cumulative_clip_counts[-1]), (count - num_rewarded,)).numpy()
        if num_rewarded:
            chosen = torch.randint(len(self.rewarded_clips), (num_rewarded,)).numpy()
            clip_indices = np.concatenate((clip_indices, self.rewarded_clips[chosen]))
        return self._read(clip_indices)

    def evenly_spaced(self, max_count: int) -> Tensor:
        """Return frames of contexts evenly spaced over the recording, a fraction of them over the rewarded ones.

        Args:
            max_count: number of contexts, fewer where the recording is too short.

        Returns:
            uint8 [n, t, h, w, 3].
        """
        rewarded = self.rewarded_clips[
            _evenly_spaced_indices(len(self.rewarded_clips), round(self.rewarded_fraction * max_count))
        ]
        clip_indices = np.concatenate(
            (_evenly_spaced_indices(int(self.cumulative_clip_counts[-1]), max_count - len(rewarded)), rewarded)
        )
        return self._read(clip_indices).frames

    def _num_rewarded(self, count: int) -> int:
        return min(round(self.rewarded_fraction * count), count - 1)

    def _count_clips(self, shard: int, episode: int, past_ends: bool) -> int:
        """Return how many clips an episode has: the first one begins with its first frame."""
        entry = self.clips.shards[shard].episodes[episode]
        if past_ends and is_terminated(self.clips.paths[shard], entry):
            return entry.frames
        return max(entry.frames - self.clips.clip_length + 1, 0)

    def _read(self, clip_indices: NDArray[np.int64]) -> ClipBatch:
        return collate_clips([self.clips.read(self._address(int(index))) for index in clip_indices])

    def _address(self, index: int) -> ClipAddress:
        """Return the clip at an index, which counts all clips of the first episode, then those of the second, ..."""
        episode = int(np.searchsorted(self.cumulative_clip_counts, index, side="right"))
        first = int(self.cumulative_clip_counts[episode - 1]) if episode else 0
        return ClipAddress(*self.episodes[episode], index - first, 0)

    def _find_rewarded_clips(self, horizon: int) -> NDArray[np.int64]:
        """Return the indices of the clips that are followed by a reward within the horizon."""
        first_clips = np.append(0, self.cumulative_clip_counts[:-1])
        found = []
        for (shard, episode), first in zip(self.episodes, first_clips, strict=True):
            rewarded = rewarded_within(_read_episode_rewards(self.clips, shard, episode), horizon)
            found.append(first + np.flatnonzero(rewarded[self.clips.clip_length - 1 :]))
        rewarded_clips = np.concatenate(found)
        if not len(rewarded_clips):
            raise ValueError(
                "no action in this recording was rewarded: rewarded_fraction=0 samples all of it uniformly"
            )
        return rewarded_clips


def _evenly_spaced_indices(size: int, max_count: int) -> NDArray[np.int64]:
    """Return at most ``max_count`` evenly spaced integers below ``size``."""
    return np.linspace(0, size - 1, min(max_count, size)).round().astype(np.int64)


def rewarded_within(rewards: NDArray[np.float32], horizon: int) -> NDArray[np.bool_]:
    """Return where one of the next ``horizon`` rewards, from the current action's on, is not 0: [T] -> bool [T]."""
    counts = np.concatenate(([0], (rewards != 0).cumsum()))
    times = np.arange(len(rewards))
    return counts[np.minimum(times + horizon, len(rewards))] > counts[times]


def _read_episode_rewards(clips: ClipDataset, shard: int, episode: int) -> NDArray[np.float32]:
    path, entry = clips.paths[shard], clips.shards[shard].episodes[episode]
    if "rewards.npy" not in entry.members:
        raise ValueError(f"{path}: episode {entry.key!r} has no rewards: set rewarded_fraction=0")
    rewards: NDArray[np.float32] = read_array(path, entry, "rewards")
    return rewards
