"""Read frames of episodes from shards, raw arrays and videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vwm.data.in_place import is_in_place, read_in_place_frames
from vwm.data.shard_index import EpisodeIndexEntry
from vwm.data.shard_reading import read_array_rows


def read_episode_frames(path: str, entry: EpisodeIndexEntry) -> NDArray[np.uint8]:
    """Read all frames of an episode, uint8 [T, H, W, 3]."""
    return read_frames(path, entry, range(entry.frames))


def read_frames(path: str, entry: EpisodeIndexEntry, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Read frames of an episode by their indices, which must ascend.

    Returns:
        uint8 [n, H, W, 3].

    Raises:
        ValueError: the episode has no frames (only latents), or not as many.
    """
    if is_in_place(path):
        return read_in_place_frames(path, entry, indices)
    if "frames.npy" in entry.members:
        start = indices[0]
        rows = read_array_rows(path, entry, "frames", start, indices[-1] + 1)
        return rows[[i - start for i in indices]]
    extension = entry.video_extension
    if extension is None:
        raise ValueError(
            f"{path}: episode {entry.key!r} holds no frames (it has {', '.join(entry.members)}). Train with "
            f"data.fields=[latents, actions], or encode with --keep_video"
        )
    # imported here, so that raw frames are read where PyAV is not installed
    from vwm.data.video_packets import read_video_frames

    offset, size = entry.members[extension]
    return read_video_frames(path, offset, size, indices, f"{path}:{entry.key}.{extension}")
