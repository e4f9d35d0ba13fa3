"""NumPy files of arrays, one or several episodes each, as recorders of Procgen or Atari write them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vwm.data.importers.named_arrays import (
    ACTIONS,
    bounds_of,
    find_array,
    find_cameras,
    find_episode_ranges,
    make_episode,
)
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode


class NpzSource(EpisodeSource):
    """An ``.npz`` file, or a folder of them. Arrays of Python objects are not read, since those are pickles.

    Args:
        path: of the file or folder.

    Raises:
        ValueError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
        if not self.files:
            raise ValueError(f"{path}: has no .npz files")
        self.folder = path if path.is_dir() else path.parent
        for file in self.files:  # the first that can be read
            try:
                self.cameras = find_cameras(_load(file))
                break
            except ValueError as error:
                problem = error
        else:
            raise problem

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``. A file that cannot be read counts as one episode."""
        names = []
        for file in self.files:
            try:
                parts = self._parts(_load(file))
            except ValueError:
                parts = [slice(0, 0)]
            names += [f"{file.relative_to(self.folder).as_posix()}:{part.start}" for part in parts]
        return names

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        file, start = name.rsplit(":", 1)
        arrays = _load(self.folder / file)
        part = next(part for part in self._parts(arrays) if part.start == int(start))
        return make_episode(arrays, self.cameras, part)

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of the actions of all files that can be read."""
        bounds = []
        for file in self.files:
            try:
                actions = find_array(_load(file), ACTIONS)
            except ValueError:
                continue
            found = None if actions is None else bounds_of(actions)
            bounds += [] if found is None else [found]
        return ActionBounds.join(bounds) if bounds else None

    def _parts(self, arrays: dict[str, Any]) -> list[slice]:
        missing = [camera for camera in self.cameras if camera not in arrays]
        if missing or not self.cameras:
            raise ValueError(f"has no pictures{f' named {missing[0]}' if missing else ''}")
        return find_episode_ranges(arrays, self.cameras[0])


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file}: cannot be read as NumPy arrays ({error})") from error
