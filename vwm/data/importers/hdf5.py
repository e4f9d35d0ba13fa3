"""HDF5 files of robomimic's layout (also LIBERO, MimicGen), and flat ones of D4RL's.

- ``data/demo_0`` and so on, one group an episode: ``obs`` with pictures, ``actions``, ``rewards``, ``dones`` and so on.
- Arrays at the top, all episodes one after the other: pictures, ``actions``, ``rewards``, ``terminals``, ``timeouts``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vwm.data.importers.named_arrays import (
    ACTIONS,
    bounds_of,
    count_frames,
    find_array,
    find_cameras,
    find_episode_ranges,
    make_episode,
)
from vwm.data.importers.pictures import EncodedPictures
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode


class Hdf5Source(EpisodeSource):
    """A file of robomimic's or D4RL's layout.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is no HDF5 file.
        ImportError: h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError("HDF5 files require h5py: pip install 'vwm[hdf5]'") from error
        try:
            self.file = h5py.File(path)
        except OSError as error:
            raise ValueError(f"{path}: is no HDF5 file, or a damaged one ({error})") from error
        groups = self.file.get("data") if isinstance(self.file.get("data"), h5py.Group) else self.file
        episodes = [n for n in groups if isinstance(groups[n], h5py.Group) and "actions" in groups[n]]
        self.groups: dict[str, Any] = {name: groups[name] for name in sorted(episodes, key=_number)}
        first = next(iter(self.groups.values()), self.file)
        self.cameras = find_cameras(_arrays(first))
        self.meta, self.fps = _describe(groups.attrs if self.groups else {})

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        if self.groups:
            return list(self.groups)
        arrays = _arrays(self.file)
        return [f"frame {part.start}" for part in find_episode_ranges(arrays, self.cameras[0])]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        arrays = _arrays(self.groups[name] if self.groups else self.file)
        cameras = [camera for camera in self.cameras if camera in arrays]
        if not cameras:
            raise ValueError("has no pictures")
        if self.groups:
            part = slice(0, count_frames(arrays, cameras[0]))
        else:
            part = next(p for p in find_episode_ranges(arrays, cameras[0]) if f"frame {p.start}" == name)
        return make_episode(arrays, self.cameras, part, fps=self.fps, meta=dict(self.meta))

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of all actions of the file."""
        parts = [find_array(_arrays(group), ACTIONS) for group in self.groups.values() or [self.file]]
        bounds = [found for part in parts if part is not None and (found := bounds_of(part)) is not None]
        return ActionBounds.join(bounds) if bounds else None


def _arrays(group: Any) -> dict[str, Any]:
    """Return the arrays of a group and of its ``obs`` by name, encoded pictures as pictures."""
    places = [group, *(group[name] for name in ("obs", "observations") if isinstance(group.get(name), Mapping))]
    arrays = {name: item for place in places for name, item in place.items() if hasattr(item, "dtype")}
    return {n: EncodedPictures(_Rows(a), n) if _are_encoded_pictures(a) else a for n, a in arrays.items()}


class _Rows(Sequence[bytes]):
    """The bytes of encoded pictures, [T, N] with zeros at the ends or T of different lengths, read one at a time."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return bytes(self.array[index])


def _are_encoded_pictures(array: Any) -> bool:
    """Return whether an array holds JPEG or PNG files, as Minari and ALOHA store pictures."""
    import h5py

    of_different_lengths = array.ndim == 1 and h5py.check_vlen_dtype(array.dtype) == np.uint8
    if not (of_different_lengths or (array.dtype == np.uint8 and array.ndim == 2)) or not len(array):
        return False
    return bytes(array[0][:4]).startswith((b"\xff\xd8\xff", b"\x89PNG"))


def _describe(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return what robomimic's attributes say: the task in words, and frames per second."""
    meta: dict[str, Any] = {}
    fps = None
    try:
        env = json.loads(attributes.get("env_args", "{}"))
        task = json.loads(attributes.get("problem_info", "{}")).get("language_instruction") or env.get("env_name")
        rate = (env.get("env_kwargs") or {}).get("control_freq")
    except (ValueError, AttributeError):
        return meta, fps
    if task:
        meta["task"] = "".join(task).strip('"')
    return meta, float(rate) if rate else None


def _number(name: str) -> tuple[int, str]:
    found = re.search(r"\d+", name)
    return int(found.group()) if found else 0, name
