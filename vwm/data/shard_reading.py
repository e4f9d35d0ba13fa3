"""Read members of shards by their byte offsets: arrays, rows of arrays and metadata."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.json_files import parse_json_object
from vwm.core.remote_files import is_remote
from vwm.data.episode_entry import EpisodeIndexEntry, parse_npy_header
from vwm.data.in_place import is_in_place, read_in_place_metadata, read_in_place_rows
from vwm.data.remote_blocks import read_remote_bytes

NPY_HEADER_BYTES = 128
"""Length of the header that numpy writes before the arrays of a shard."""


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """Read ``size`` bytes of a local file or fsspec address, starting at ``offset``.

    A web server that ignores byte ranges sends the whole shard, which is then kept in the user's cache.

    Raises:
        ValueError: the file ends before.
    """
    if is_remote(path):
        return read_remote_bytes(path, offset, size)
    now = Path(path).stat()
    data = os.pread(_open_shard(path, now.st_ino, now.st_mtime_ns).descriptor, size, offset)
    if len(data) < size:
        raise ValueError(f"{path}: ends before byte {offset + size}: download or write this shard again")
    return data


class _OpenShard:
    """An open file, closed when the cache has dropped it and no thread reads from it any more.

    ``os.pread`` takes its own offset, so that threads and forked processes do not disturb each other.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=64)
def _open_shard(path: str, inode: int, time: int) -> _OpenShard:
    """Open a shard; a file that has taken its place since has another number or time."""
    return _OpenShard(path)


def read_member(path: str, entry: EpisodeIndexEntry, extension: str) -> bytes:
    """Read a whole member of an episode."""
    return read_bytes(path, *entry.members[extension])


def read_sample(path: str, entry: EpisodeIndexEntry) -> dict[str, Any]:
    """Return the members of an episode as a sample for a shard: as they are stored, or of data in place, as arrays."""
    if not is_in_place(path):
        return {extension: read_member(path, entry, extension) for extension in entry.members}
    arrays = {extension: read_array(path, entry, extension.removesuffix(".npy")) for extension in entry.members}
    return {**arrays, "json": json.dumps(read_in_place_metadata(path, entry)).encode()}


def read_array(path: str, entry: EpisodeIndexEntry, field: str) -> NDArray[Any]:
    """Read an array of an episode (``actions``, ``rewards``, ``state``, ...), [T, ...]."""
    if is_in_place(path):
        return read_in_place_rows(path, entry, field, 0, None)
    data = read_member(path, entry, f"{field}.npy")
    try:
        shape, dtype, header_size = parse_npy_header(data)
        return np.frombuffer(data, dtype, offset=header_size).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}:{entry.key}.{field}.npy cannot be read ({error})") from error


def read_array_rows(path: str, entry: EpisodeIndexEntry, field: str, start: int, stop: int) -> NDArray[Any]:
    """Read the rows ``start`` to ``stop`` of an array of an episode, without reading the rest of it.

    Raises:
        ValueError: the array has too few rows, or values that are not finite.
    """
    if is_in_place(path):
        return read_in_place_rows(path, entry, field, start, stop)
    offset, size = entry.members[f"{field}.npy"]
    header = read_bytes(path, offset, min(size, NPY_HEADER_BYTES))
    try:
        shape, dtype, header_size = parse_npy_header(header)
    except ValueError as error:
        raise ValueError(f"{path}:{entry.key}.{field}.npy cannot be read ({error})") from error
    if stop > shape[0]:
        raise ValueError(
            f"{path}:{entry.key}.{field}.npy: has {shape[0]} rows, one for each of at least {stop} frames was expected"
        )
    row_size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    raw = read_bytes(path, offset + header_size + start * row_size, (stop - start) * row_size)
    rows = np.frombuffer(raw, dtype=dtype).reshape(stop - start, *shape[1:])
    if dtype.kind == "f" and not np.isfinite(rows).all():
        row = start + int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
        raise ValueError(f"{path}:{entry.key}.{field}.npy: row {row} has values that are not finite")
    return rows


def read_episode_metadata(path: str, entry: EpisodeIndexEntry) -> dict[str, Any]:
    """Read the JSON member of an episode (fps, source, action names, ...); an empty dictionary if it has none."""
    if is_in_place(path):
        return read_in_place_metadata(path, entry)
    if "json" not in entry.members:
        return {}
    return parse_json_object(read_member(path, entry, "json"), f"{path}:{entry.key}.json")


def is_terminated(path: str, entry: EpisodeIndexEntry) -> bool:
    """Whether the last action of an episode terminated the environment; older indices do not say it."""
    if entry.terminated is None:
        return bool(read_episode_metadata(path, entry).get("terminated"))
    return entry.terminated
