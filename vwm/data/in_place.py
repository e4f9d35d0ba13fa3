"""Data sets of other projects read in place, as if they were shards: the same clips in the same order, unconverted.

An address says what is read and how it is shown: ``lerobot:data/aloha?cameras=top,wrist&size=96``. Its settings are
those of ``vwm import``: cameras, size (or height and width), fps. Its shards have addresses, too, which end in
``/shard-000000.tar``; each stands for the episodes that an import would put there, under the same keys. All readers
of shards therefore read them: the clip order, mixtures, evaluation, inspection, conversion.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from vwm.core.limits import MAX_FPS
from vwm.core.remote_files import is_remote
from vwm.data.action_metadata import known_action_parts
from vwm.data.episode_entry import EpisodeIndexEntry, ShardIndex
from vwm.data.frame_size import choose_frame_size
from vwm.data.importers.source import SeekableSource
from vwm.data.recent_items import RecentItems

IN_PLACE_KINDS = {
    "lerobot": "vwm.data.importers.lerobot:LeRobotSource",
    "csgo": "vwm.data.importers.csgo:CsgoSource",
}
_MARKS = {"lerobot": "meta/info.json"}
"""A file by which a folder of a kind is known."""
EPISODES_PER_SHARD = 8
"""As many as ``vwm import`` puts in a shard."""
MAX_VALUE_BYTES = 64 * 2**20
"""Values of episodes that a process keeps of each data set."""
_ADDRESS = re.compile(r"(?P<kind>[a-z-]+):(?P<folder>[^?]+?)(?:\?(?P<query>.*?))?(?:/shard-(?P<shard>\d{6,})\.tar)?")


class InPlaceAddress(NamedTuple):
    """What an address names.

    Attributes:
        kind: format of the data set.
        folder: that holds it.
        cameras: shown side by side, as the address names them; may be empty where there is one.
        height, width: of the frames of each camera, in pixels; None keeps their size.
        fps: frames per second where the data set does not state them.
    """

    kind: str
    folder: str
    cameras: tuple[str, ...]
    height: int | None
    width: int | None
    fps: float | None


def is_in_place(path: str) -> bool:
    """Return whether a path is the address of a data set that is read in place, or of a shard of one."""
    return path.partition(":")[0] in IN_PLACE_KINDS


def short_data_name(path: str) -> str:
    """Return the last part of a folder or address, without the settings of what is read in place: ``aloha``."""
    return Path(_parse(path)[0].folder if is_in_place(path) else path).name


def find_in_place(path: str) -> list[str]:
    """Return the addresses of the shards of a data set; none where a path is no such data set.

    Args:
        path: an address, or the folder of a data set of which one camera is shown as it is.

    Raises:
        ValueError: the address is invalid, or the data set cannot be read.
    """
    if not is_in_place(path):
        kinds = [] if is_remote(path) else [kind for kind, mark in _MARKS.items() if (Path(path) / mark).is_file()]
        return find_in_place(f"{kinds[0]}:{path}") if kinds else []
    address, shard = _parse(path)
    if shard is not None:
        return [path]
    _open_data_set.cache_clear()  # episodes may have come
    count = -(-len(_open_data_set(address, os.getpid()).names) // EPISODES_PER_SHARD)
    return [f"{path.rstrip('/')}/shard-{number:06d}.tar" for number in range(count)]


def load_in_place_index(shard: str) -> ShardIndex:
    """Return the index of a shard of a data set that is read in place."""
    data_set, number = _open_shard(shard)
    return data_set.make_index(number)


def read_in_place_frames(shard: str, entry: EpisodeIndexEntry, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Read frames of an episode by their indices, which ascend: uint8 [n, H, W, 3], all cameras side by side."""
    data_set, _ = _open_shard(shard)
    return data_set.read_frames(data_set.find_name(entry.key), indices)


def read_in_place_rows(shard: str, entry: EpisodeIndexEntry, field: str, start: int, stop: int | None) -> NDArray[Any]:
    """Read rows of an array of an episode, to its end where ``stop`` is None.

    Raises:
        ValueError: the array has too few rows, or values that are not finite.
    """
    data_set, _ = _open_shard(shard)
    if field == "frames":
        return read_in_place_frames(shard, entry, range(start, entry.frames if stop is None else stop))
    name = data_set.find_name(entry.key)
    values = data_set.read_values(name)[0][field]
    if stop is not None and stop > len(values):
        raise ValueError(f"{data_set.address.folder}: {name} has {len(values)} {field}, at least {stop} were expected")
    rows = values[start:stop]
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        row = start + int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
        raise ValueError(f"{data_set.address.folder}: {field} of {name} are not finite at frame {row}")
    return rows


def read_in_place_metadata(shard: str, entry: EpisodeIndexEntry) -> dict[str, Any]:
    """Return the metadata of an episode, as an import would store them."""
    data_set, _ = _open_shard(shard)
    return dict(data_set.read_values(data_set.find_name(entry.key))[1])


def count_source_bytes(shards: Iterable[str]) -> Counter[str]:
    """Return the bytes of the files that shards of data sets in place are read from, by the ends of their names.

    A file counts once, however many episodes it holds.
    """
    files: set[Path] = set()
    for shard in shards:
        data_set, number = _open_shard(shard)
        for name in data_set.names_of(number):
            files.update(data_set.source.files_of(name, data_set.cameras))
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.suffix[1:]] += file.stat().st_size if file.is_file() else 0
    return sizes


class _InPlaceDataSet:
    """A data set that is read in place.

    Attributes:
        names: of its episodes.
    """

    def __init__(self, address: InPlaceAddress) -> None:
        from vwm.data.importers.source_values import choose_cameras  # it needs PyAV, which shards of raw frames do not

        folder = Path(address.folder)
        if not folder.exists():
            raise FileNotFoundError(f"{address.folder}: there is no such file or folder")
        module, name = IN_PLACE_KINDS[address.kind].split(":")
        self.address = address
        self.source: SeekableSource = getattr(importlib.import_module(module), name)(folder)
        self.cameras = choose_cameras(self.source, address.cameras, address.folder)
        self.source.use(self.cameras)
        self.bounds = self.source.action_bounds()
        self.episodes = self.source.summarize()
        self.names = list(self.episodes)
        if not self.names:
            raise ValueError(f"{address.folder}: has no episodes")
        self._values: RecentItems[tuple[dict[str, NDArray[Any]], dict[str, Any]]] = RecentItems(MAX_VALUE_BYTES)

    def find_name(self, key: str) -> str:
        """Return the name of the episode of a key."""
        shard, number, _ = map(int, key.split("-"))
        return self.names[shard * EPISODES_PER_SHARD + number]

    def names_of(self, shard: int) -> list[str]:
        """Return the names of the episodes of a shard."""
        return self.names[shard * EPISODES_PER_SHARD :][:EPISODES_PER_SHARD]

    def make_index(self, shard: int) -> ShardIndex:
        """Return the index of a shard."""
        values, meta = self.read_values(self.names[0])
        actions = values.get("actions")
        known = () if actions is None else known_action_parts(meta, actions.shape)
        members = {f"{field}.npy": (0, 0) for field in ("frames", *values)}
        digest = hashlib.blake2b(repr((self.address._replace(folder=""), self.cameras)).encode(), digest_size=16)
        entries = []
        for number, name in enumerate(self.names_of(shard)):
            summary = self.episodes[name]
            digest.update(f"{name}\0{summary.length}\0{summary.fingerprint}\0".encode())
            entries.append(
                EpisodeIndexEntry(
                    key=f"{shard:06d}-{number:04d}-00000",
                    frames=summary.length,
                    height=int(meta["height"]),
                    width=int(meta["width"]),
                    fps=float(meta.get("fps") or 0),
                    members=members,
                    known_parts=known,
                )
            )
        return ShardIndex(tar=f"shard-{shard:06d}.tar", size=0, hash=digest.hexdigest(), episodes=tuple(entries))

    def read_values(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return actions, rewards and state of an episode, as far as it has them, and its metadata."""
        return self._values.get(name, functools.partial(self._make_values, name))

    def read_frames(self, name: str, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return frames of an episode, uint8 [n, H, W, 3]."""
        return np.stack([np.concatenate(views, axis=1) for views in self._read_views(name, indices)])

    def _read_views(self, name: str, indices: Sequence[int]) -> list[list[NDArray[np.uint8]]]:
        """Return the frames of each camera at each time, resized."""
        from vwm.data.importers.source_values import resize_views

        try:
            cameras = [self.source.read_frames(name, camera, indices) for camera in self.cameras]
            height, width = self.address.height, self.address.width
            return [resize_views(pictures, height, width) for pictures in zip(*cameras, strict=True)]
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.address.folder}: {name}: {error}") from error

    def _make_values(self, name: str) -> tuple[tuple[dict[str, NDArray[Any]], dict[str, Any]], int]:
        from vwm.data.importers.source_values import convert_values, describe_episode

        try:
            found = self.source.read(name)
            values = {k: v for k, v in convert_values(found, self.bounds).items() if v is not None}
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.address.folder}: {name}: {error}") from error
        height, views = self._first_views
        meta = describe_episode(self.source, name, found, views, self.bounds, self.address.fps)
        meta |= {"first_source_frame": 0, "frames": found.length, "height": height, "width": sum(views.values())}
        meta |= {"terminated": found.terminated, "truncated": not found.terminated}
        return (values, meta), sum(value.nbytes for value in values.values())

    @functools.cached_property
    def _first_views(self) -> tuple[int, dict[str, int]]:
        """Height of frames, and the width of each camera, by the first frame of the first episode."""
        (views,) = self._read_views(self.names[0], range(1))
        return views[0].shape[0], {camera: view.shape[1] for camera, view in zip(self.cameras, views, strict=True)}


@functools.lru_cache(maxsize=16)
def _open_data_set(address: InPlaceAddress, process: int) -> _InPlaceDataSet:
    """Open a data set, once in each process."""
    return _InPlaceDataSet(address)


def _open_shard(shard: str) -> tuple[_InPlaceDataSet, int]:
    address, number = _parse(shard)
    assert number is not None
    return _open_data_set(address, os.getpid()), number


@functools.lru_cache(maxsize=4096)
def _parse(path: str) -> tuple[InPlaceAddress, int | None]:
    """Return what an address names, and the number of the shard where it ends in one.

    Raises:
        ValueError: a setting is unknown or invalid.
    """
    found = _ADDRESS.fullmatch(path)
    try:
        if found is None:
            raise ValueError("its folder is missing")
        if is_remote(found["folder"]):
            raise ValueError("data sets are read in place from a folder of this machine: download it, or import it")
        settings = dict(parse_qsl(found["query"] or "", keep_blank_values=True, strict_parsing=bool(found["query"])))
        unknown = set(settings) - {"cameras", "size", "height", "width", "fps"}
        if unknown:
            raise ValueError(f"unknown are {', '.join(sorted(unknown))}")
        sizes = [int(settings[name]) if name in settings else None for name in ("size", "height", "width")]
        height, width = choose_frame_size(*sizes)
        fps = float(settings["fps"]) if "fps" in settings else None
        if fps is not None and not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {fps:g}")
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. An address is such as lerobot:data/aloha?cameras=top,wrist&size=96, with height and "
            f"width for frames that are not square, and fps"
        ) from error
    cameras = tuple(name for name in settings.get("cameras", "").split(",") if name)
    address = InPlaceAddress(found["kind"], found["folder"], cameras, height, width, fps)
    return address, None if found["shard"] is None else int(found["shard"])
