"""Read whole episodes from shards in the units of the data set that they come from, camera by camera."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.action_parts import read_action_parts
from vwm.data.episode_entry import EpisodeIndexEntry
from vwm.data.frame_reading import read_frames
from vwm.data.shard_reading import read_array_rows, read_episode_metadata

FRAMES_AT_ONCE = 64
"""Frames that are read together: those of 640x480 pixels take 59 MB."""


@dataclass(frozen=True)
class StoredEpisode:
    """An episode in a shard; its frames are read as they are needed.

    Attributes:
        shard: path of the shard.
        entry: of the index.
        cameras: the columns of the frames that each camera has, by its name.
        actions: int64 [T]; or float32 [T, A] in the units of the data set that they come from, or as they are stored
            where the metadata do not state their bounds. None if unknown.
        rewards: float32 [T]. None if unknown.
        state: float32 [T, S]. None if unknown.
        fps: frames per second.
        meta: the metadata.
    """

    shard: str
    entry: EpisodeIndexEntry
    cameras: dict[str, slice]
    actions: NDArray[Any] | None
    rewards: NDArray[np.float32] | None
    state: NDArray[np.float32] | None
    fps: float
    meta: dict[str, Any]

    @property
    def terminated(self) -> bool:
        """Whether the environment ended after the last frame."""
        return bool(self.meta.get("terminated", False))

    @property
    def action_names(self) -> list[str] | None:
        """Names of the dimensions of actions [T, A]; None for others, or if they are unknown."""
        if self.actions is None or self.actions.ndim == 1:
            return None
        if self.meta.get("action_parts"):
            return [name for part in read_action_parts(self.meta["action_parts"]) for name in part.column_names]
        return _fitting(self.meta.get("action_names"), self.actions.shape[1])

    @property
    def state_names(self) -> list[str] | None:
        """Names of the dimensions of the state; None if they are unknown."""
        return None if self.state is None else _fitting(self.meta.get("state_names"), self.state.shape[1])

    def iterate_views(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Yield the frames in order, uint8 [H, W, 3] of each camera."""
        for start in range(0, self.entry.frames, FRAMES_AT_ONCE):
            some = range(start, min(start + FRAMES_AT_ONCE, self.entry.frames))
            for pixels in read_frames(self.shard, self.entry, some):
                yield {camera: pixels[:, columns] for camera, columns in self.cameras.items()}


def read_stored_episode(shard: str, entry: EpisodeIndexEntry, fps: float | None) -> StoredEpisode:
    """Read an episode without its frames.

    Args:
        shard: path of the shard.
        entry: of its index.
        fps: frames per second where the shard does not state them.

    Raises:
        ValueError: it has no frames, no frame rate, or metadata that contradict its arrays.
    """
    place = f"{shard}:{entry.key}"
    if not entry.has_frames:
        raise ValueError(f"{place}: has no frames, only {', '.join(entry.members)}: convert the data that were encoded")
    rate = entry.fps or fps
    if not rate:
        raise ValueError(f"{place}: does not state its frames per second: give --fps")
    meta = read_episode_metadata(shard, entry)
    arrays = {
        name: read_array_rows(shard, entry, name, 0, entry.frames) if f"{name}.npy" in entry.members else None
        for name in ("actions", "rewards", "state")
    }
    if arrays["actions"] is not None:
        arrays["actions"] = _restore_units(place, arrays["actions"], meta)
    return StoredEpisode(shard, entry, find_camera_columns(place, entry.width, meta), fps=rate, meta=meta, **arrays)


def find_camera_columns(place: str, width: int, meta: dict[str, Any]) -> dict[str, slice]:
    """Return the columns of each camera in frames that show several side by side.

    Args:
        place: name of the episode, for errors.
        width: of the frames, in pixels.
        meta: of the episode: ``cameras`` are the names, ``camera_widths`` how wide each is. One camera if missing.

    Raises:
        ValueError: the metadata do not fit the frames.
    """
    names = meta.get("cameras") or ["camera"]
    widths = meta.get("camera_widths") or [width]
    valid = (
        isinstance(names, list) and isinstance(widths, list) and len(names) == len(widths) == len(set(map(str, names)))
    )
    if not valid or any(type(w) is not int or w < 1 for w in widths) or sum(widths) != width:
        raise ValueError(f"{place}: cameras {names} of widths {widths} do not make up frames {width} wide")
    stops = np.cumsum(widths).tolist()
    return {str(n): slice(stop - w, stop) for n, w, stop in zip(names, widths, stops, strict=True)}


def shorten_camera_names(names: Sequence[str]) -> dict[str, str]:
    """Return short names of letters, digits, dashes and underscores: the last parts of names if those differ."""
    short = {name: re.sub(r"[^A-Za-z0-9_-]", "_", re.split(r"[./]", name)[-1]) for name in names}
    if not _are_distinct(short.values()):
        short = {name: re.sub(r"[^A-Za-z0-9_-]", "_", name) for name in names}
    return short if _are_distinct(short.values()) else {name: f"camera_{i}" for i, name in enumerate(names)}


def _are_distinct(names: Collection[str]) -> bool:
    """Whether names are not empty and differ also in lower case, as extensions of WebDataset are."""
    return len({name.lower() for name in names if name}) == len(names)


def _restore_units(place: str, actions: NDArray[Any], meta: dict[str, Any]) -> NDArray[Any]:
    """Return continuous actions in the units of the data set, by the bounds in the metadata; others as they are."""
    if actions.ndim == 1 or meta.get("action_parts"):
        return actions
    low, high = (np.array(meta.get(name) or [], np.float64) for name in ("action_low", "action_high"))
    if not low.size and not high.size:
        return actions
    if low.shape != high.shape or low.shape != actions.shape[1:]:
        raise ValueError(
            f"{place}: action_low and action_high must have one number for each of {actions.shape[1]} axes"
        )
    return np.asarray((low + high) / 2 + actions * (high - low) / 2, np.float32)


def _fitting(names: Any, count: int) -> list[str] | None:
    return [str(name) for name in names] if isinstance(names, list) and len(names) == count else None
