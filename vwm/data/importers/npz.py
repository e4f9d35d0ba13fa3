"""NumPy files of arrays, one or several episodes each, as recorders of Procgen or Atari write them."""

from __future__ import annotations

import contextlib
import functools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    def _parts(self, arrays: Mapping[str, Any]) -> list[slice]:
        missing = [camera for camera in self.cameras if camera not in arrays]
        if missing or not self.cameras:
            raise ValueError(f"has no pictures{f' named {missing[0]}' if missing else ''}")
        return find_episode_ranges(arrays, self.cameras[0])


class _StoredArray:
    """An array of a file, of which only the header is read until its values are used.

    Args:
        file: the ``.npz`` file.
        name: of the array.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self.name = name
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, _, self.dtype = read(member)  # type: ignore[no-untyped-call]
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> Any:
        return self._values[key]

    @functools.cached_property
    def _values(self) -> NDArray[Any]:
        with _named_errors(self.file), np.load(self.file, allow_pickle=False) as arrays:
            values: NDArray[Any] = arrays[self.name]
            return values


def _load(file: Path) -> dict[str, _StoredArray]:
    with _named_errors(file), zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        return {name: _StoredArray(file, name) for name in names}


@contextlib.contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{file}: cannot be read as NumPy arrays ({error})") from error
