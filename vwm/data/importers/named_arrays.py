"""Episodes in named arrays, as HDF5 and NumPy files hold them: which array is what, and where episodes end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.importers.source import ActionBounds, SourceEpisode

ACTIONS = ("actions", "action", "act")
REWARDS = ("rewards", "reward", "rew")
STATES = ("states", "state", "physics")
TERMINATIONS = ("terminations", "terminated", "terminals", "dones", "done", "end")
TRUNCATIONS = ("truncations", "truncated", "timeouts", "trunc")


def find_cameras(arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of arrays of pictures: uint8 [T, H, W, 3], or [T, 3, H, W]."""
    return tuple(
        name
        for name, array in arrays.items()
        if array.dtype == np.uint8 and array.ndim == 4 and 3 in (array.shape[1], array.shape[3])
    )


def find_array(arrays: Mapping[str, Any], names: tuple[str, ...]) -> NDArray[Any] | None:
    """Read the first array that has one of these names; None if there is none."""
    return next((np.asarray(arrays[name][()]) for name in names if name in arrays), None)


def count_frames(arrays: Mapping[str, Any], camera: str) -> int:
    """Return the number of frames that have an action.

    A last frame without one, as in recordings of T + 1 observations and T actions, does not count: the last action of
    an episode leads to a frame that is not stored.
    """
    length = len(arrays[camera])
    actions = next((arrays[name] for name in ACTIONS if name in arrays), None)
    return length - 1 if actions is not None and len(actions) == length - 1 else length


def find_episode_ranges(arrays: Mapping[str, Any], camera: str) -> list[slice]:
    """Return the frames of each episode in arrays that hold several, one after the other.

    Raises:
        ValueError: there are not as many flags of ends as frames.
    """
    length = count_frames(arrays, camera)
    ends = np.zeros(length, bool)
    for names in (TERMINATIONS, TRUNCATIONS):
        found = find_array(arrays, names)
        if found is not None:
            if len(found) != length:
                raise ValueError(f"{'/'.join(names[:2])} has {len(found)} entries for {length} frames")
            ends |= found.reshape(length).astype(bool)
    if length:
        ends[-1] = True
    stops = (np.flatnonzero(ends) + 1).tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def make_episode(arrays: Mapping[str, Any], cameras: tuple[str, ...], frames: slice, **others: Any) -> SourceEpisode:
    """Return the episode of a range of frames.

    Raises:
        ValueError: arrays have other lengths than the frames.
    """
    length = count_frames(arrays, cameras[0])
    values = {"actions": ACTIONS, "rewards": REWARDS, "state": STATES, "ends": TERMINATIONS}
    found = {key: find_array(arrays, names) for key, names in values.items()}
    for key, value in found.items():
        if value is not None and len(value) not in (length, length + (key == "state")):
            raise ValueError(f"{key} has {len(value)} entries for {length} frames")
    cut: dict[str, Any] = {key: None if value is None else value[frames] for key, value in found.items()}
    ends = cut.pop("ends")
    if cut["rewards"] is not None:
        cut["rewards"] = cut["rewards"].reshape(-1)
    if cut["state"] is not None:
        cut["state"] = cut["state"].reshape(len(cut["state"]), -1)
    return SourceEpisode(
        length=frames.stop - frames.start,
        iterate_frames=lambda camera: _iterate_pictures(arrays[camera], frames),
        actions=_to_actions(cut.pop("actions")),
        terminated=ends is not None and bool(ends.reshape(-1)[-1]),
        **cut,
        **others,
    )


def bounds_of(actions: NDArray[Any]) -> ActionBounds | None:
    """Return [-1, 1] for continuous actions within it, else their extremes; None for discrete ones."""
    values = _to_actions(actions)
    if values is None or values.ndim == 1 or not len(values):
        return None
    found = ActionBounds.of(values)
    if (found.low >= -1).all() and (found.high <= 1).all():
        ones = np.ones(values.shape[1])
        return ActionBounds(-ones, ones)
    return found


def _to_actions(actions: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return int64 [T] or float [T, A]; of one-hot rows of whole numbers the index."""
    if actions is None:
        return None
    if actions.dtype.kind in "iub" and actions.ndim == 2 and actions.shape[1] > 1 and (actions.sum(1) == 1).all():
        return actions.argmax(1).astype(np.int64)
    if actions.dtype.kind in "iub":
        if actions.size != len(actions):
            shape = list(actions.shape)
            raise ValueError(f"has actions {actions.dtype} {shape}: neither one choice a frame nor one-hot")
        return actions.reshape(len(actions)).astype(np.int64)
    return actions.reshape(len(actions), -1)


def _iterate_pictures(array: Any, frames: slice, at_once: int = 64) -> Iterator[NDArray[np.uint8]]:
    for start in range(frames.start, frames.stop, at_once):
        pictures = np.asarray(array[start : min(start + at_once, frames.stop)])
        yield from pictures if pictures.shape[-1] == 3 else np.moveaxis(pictures, 1, -1)
