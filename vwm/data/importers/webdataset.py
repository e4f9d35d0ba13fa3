"""The tars that ``vwm convert webdataset`` writes: ``KEY.mp4`` or ``KEY.CAMERA.mp4``, ``KEY.npz`` and ``KEY.json``."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.json_files import parse_json_object
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.importers.tar_members import TarMembers
from vwm.data.video import decode_frames

FRAMES_AT_ONCE = 128
NOT_KEPT = ("frames", "cameras", "camera_widths", "action_low", "action_high", "terminated", "truncated", "fps")
"""Metadata that an import states anew."""


class WebDatasetSource(EpisodeSource):
    """A folder of tars, or one tar. A damaged tar counts as one more episode, which cannot be read.

    Args:
        path: of the folder or tar.

    Raises:
        ValueError: there is no tar, or no sample of this layout.
    """

    def __init__(self, path: Path) -> None:
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        self.root = path if path.is_dir() else path.parent
        self.tars = {tar.relative_to(self.root).as_posix(): TarMembers(tar) for tar in tars}
        first = next(self._iterate_places(), None)
        videos = [n for n in self._samples(first[0])[first[1]] if n == "mp4" or n.endswith(".mp4")] if first else []
        if first is None and len(self._damaged) == len(tars) > 0:
            raise ValueError(self.tars[self._damaged[0]].damage)
        if first is None or not videos:
            raise ValueError(f"{path}: has no tar with samples KEY.mp4 (or KEY.CAMERA.mp4) and KEY.json")
        self.cameras = tuple(name.removesuffix("mp4").removesuffix(".") or "camera" for name in sorted(videos))
        meta = self._read_meta(*first)
        self.action_names, self.state_names = (
            tuple(map(str, meta.get(name) or ())) for name in ("action_names", "state_names")
        )

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [f"{tar}:{key}" for tar, key in self._iterate_places()] + self._damaged

    def is_gone(self, name: str) -> bool:
        """See ``EpisodeSource``: a damaged tar may have been mended."""
        return name in self.tars and not self.tars[name].damage

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        tar, _, key = name.partition(":")
        if name in self._damaged:
            raise ValueError(self.tars[tar].damage.removeprefix(f"{self.root / name}: "))
        meta, arrays = self._read_meta(tar, key), self._read_arrays(tar, key)
        length = int(meta.get("frames", len(arrays.get("timestamps", ()))))
        for array, values in arrays.items():
            if len(values) != length:
                raise ValueError(f"{array} has {len(values)} entries for {length} frames")
        return SourceEpisode(
            length=length,
            iterate_frames=functools.partial(self._iterate_frames, tar, key, length),
            actions=arrays.get("actions"),
            rewards=arrays.get("rewards"),
            state=arrays.get("state"),
            terminated=bool(meta.get("terminated", False)),
            fps=meta.get("fps"),
            meta={name: value for name, value in meta.items() if name not in NOT_KEPT},
        )

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds that the metadata state, over all episodes; [-1, 1] where one does not state them."""
        found = []
        for tar, key in self._iterate_places():
            try:
                meta, actions = self._read_meta(tar, key), self._read_arrays(tar, key).get("actions")
            except ValueError:  # named when it is read
                continue
            if actions is None or actions.ndim == 1 or meta.get("action_parts"):
                continue
            ones = [1.0] * actions.shape[1]
            low, high = meta.get("action_low") or [-x for x in ones], meta.get("action_high") or ones
            found.append(ActionBounds(np.array(low, float), np.array(high, float)))
        return ActionBounds.join(found) if found else None

    @property
    def _damaged(self) -> list[str]:
        return [name for name, tar in self.tars.items() if tar.damage]

    def _iterate_places(self) -> Iterator[tuple[str, str]]:
        for tar in self.tars:
            yield from ((tar, key) for key, names in self._samples(tar).items() if "json" in names)

    def _samples(self, tar: str) -> dict[str, list[str]]:
        """Return the extensions of each sample of a tar by its key."""
        samples: dict[str, list[str]] = {}
        for name in self.tars[tar].names:
            key, _, extension = name.partition(".")
            samples.setdefault(key, []).append(extension)
        return samples

    def _read_meta(self, tar: str, key: str) -> dict[str, Any]:
        name = f"{key}.json"
        return parse_json_object(self.tars[tar].read(name).decode(errors="replace"), name)

    def _read_arrays(self, tar: str, key: str) -> dict[str, NDArray[Any]]:
        if f"{key}.npz" not in self.tars[tar].names:
            return {}
        try:
            with np.load(io.BytesIO(self.tars[tar].read(f"{key}.npz")), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays}
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{key}.npz: cannot be read as NumPy arrays ({error})") from error

    def _iterate_frames(self, tar: str, key: str, length: int, camera: str) -> Iterator[NDArray[np.uint8]]:
        name = f"{key}.mp4" if camera == "camera" else f"{key}.{camera}.mp4"
        video = self.tars[tar].read(name)
        for start in range(0, length, FRAMES_AT_ONCE):
            yield from decode_frames(video, range(start, min(start + FRAMES_AT_ONCE, length)), name)
