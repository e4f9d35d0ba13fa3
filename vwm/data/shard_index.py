"""The sidecar index of a shard: the byte offset of every member, so that clips are read without scanning the tar.

The index of ``shard-000000.tar`` is ``shard-000000.index.json`` in the same folder. If it is missing (as for shards
that another tool wrote), cut off, or older than its tar, it is rebuilt by one pass over the tar and saved: next to the
shard if that folder is writable, else in the user's cache, else not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from vwm.core.atomic_files import atomic_write_text
from vwm.core.remote_files import (
    DamagedBytesError,
    StoreError,
    file_info,
    is_remote,
    list_folder,
    open_file_system,
    read_file,
    retry,
)
from vwm.data.episode_entry import EpisodeIndexEntry as EpisodeIndexEntry
from vwm.data.episode_entry import ShardIndex as ShardIndex
from vwm.data.episode_entry import make_episode_entry
from vwm.data.in_place import find_in_place, is_in_place, load_in_place_index
from vwm.data.remote_blocks import checksum_blocks, know_shard
from vwm.data.shard_cache import shard_cache_path
from vwm.data.video_formats import VIDEO_EXTENSIONS

INDEX_VERSION = 2


def shard_index_path(shard: str | os.PathLike[str]) -> str:
    """Path of the sidecar index: ``.../shard-000000.tar`` to ``.../shard-000000.index.json``."""
    return str(shard).removesuffix(".tar") + ".index.json"


def build_shard_index(shard: str, written: BinaryIO | None = None) -> ShardIndex:
    """Read a whole tar and build its index.

    Args:
        shard: path or fsspec address of the tar.
        written: the tar where it is not there yet, open at its start.

    Raises:
        ValueError: the file is not a complete tar, or a sample in it is invalid; the message names both.
    """
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    headers: dict[tuple[str, str], bytes] = {}
    try:
        with (
            _open_whole(shard) if written is None else nullcontext(written) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, file_name = member.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                if not stem or not extension:  # ".hidden", "README": WebDataset skips them, too
                    continue
                key, extension = folder + slash + stem, extension.lower()
                if extension in samples.setdefault(key, {}):
                    raise ValueError(f"{shard}: two members are called {member.name}: rename one of the samples")
                samples[key][extension] = (member.offset_data, member.size)
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                digest.update(f"{member.name}\0{member.size}\0".encode())
                digest.update(data)
                if extension == "json" or extension.endswith("npy"):
                    headers[key, extension] = data if extension == "json" else data[:256]
                elif extension in VIDEO_EXTENSIONS:
                    from vwm.data.video import probe_video  # it needs PyAV, which a shard of raw frames does not

                    headers[key, extension] = json.dumps(probe_video(data, f"{shard}:{member.name}")).encode()
            file.seek(tar.offset)
            if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:  # tarfile accepts this as the end of the archive
                raise tarfile.ReadError("the end-of-archive marker is missing")
            size = file.seek(0, os.SEEK_END)
            block_sums = checksum_blocks(file)
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not a complete tar file ({error}). Write or download this shard again.") from error
    entries = [make_episode_entry(shard, key, members, headers) for key, members in samples.items()]
    episodes = tuple(entry for entry in entries if entry is not None)
    if samples and not episodes:
        found = sorted({extension for members in samples.values() for extension in members})
        raise ValueError(
            f"{shard}: none of its {len(samples)} samples has a video or frames that are known. Their members end in "
            f"{', '.join(found[:6])}; known are frames.npy, latents.npy, {', '.join(VIDEO_EXTENSIONS)}. A name is cut "
            "at its first dot"
        )
    return ShardIndex(
        tar=os.path.basename(shard), size=size, hash=digest.hexdigest(), episodes=episodes, block_sums=block_sums
    )


def _download(fs: Any, shard: str, copy: str) -> None:
    fs.get_file(fs._strip_protocol(shard), copy)
    size = fs.info(fs._strip_protocol(shard)).get("size")
    if size not in (None, Path(copy).stat().st_size):
        raise DamagedBytesError(f"{Path(copy).stat().st_size} of {size} bytes came")


@contextmanager
def _open_whole(shard: str) -> Iterator[BinaryIO]:
    """Open a shard at its start; a remote one is downloaded, which needs no server that knows byte ranges."""
    if "://" not in shard:
        with Path(shard).open("rb") as file:
            yield file
        return
    fs = open_file_system(shard)
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        retry(shard, "the shard, whose index is missing,", lambda: _download(fs, shard, copy.name))
        with Path(copy.name).open("rb") as file:
            yield file


def write_shard_index(index: ShardIndex, shard: str | os.PathLike[str]) -> None:
    """Write the index next to its shard, atomically."""
    atomic_write_text(shard_index_path(shard), _index_text(index))


def _index_text(index: ShardIndex, **more: Any) -> str:
    """Return an index as JSON, with a checksum of everything else in it."""
    content: dict[str, Any] = {"version": INDEX_VERSION, **asdict(index), **more}
    del content["tag"]
    for entry in content["episodes"]:
        entry["known_parts"] = list(entry["known_parts"])
        for name, nothing in (("known_parts", []), ("terminated", None), ("scores", {})):
            if entry[name] == nothing:
                del entry[name]
    return json.dumps({**content, "checksum": _checksum(content)})


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def is_shard_complete(shard: Path) -> bool:
    """Return whether a shard exists; writes its index where a process was killed between the two."""
    if not shard.exists():
        return False
    if not Path(shard_index_path(shard)).exists():
        load_shard_index(str(shard))
    return True


def load_shard_index(shard: str) -> ShardIndex:
    """Load the index of a shard: from its sidecar, from the user's cache, or rebuilt from the tar.

    Args:
        shard: local path or fsspec address (``s3://``, ``gs://``, ``https://``, ...).
    """
    if is_in_place(shard):
        return load_in_place_index(shard)
    now = shard_fingerprint(shard)
    index = _find_index(shard, now)
    if is_remote(shard):
        index = replace(index, tag=now.get("ETag", now.get("etag", "")))
        know_shard(shard, index.size, index.tag, index.block_sums)
    return index


def load_shard_indices(shards: Sequence[str]) -> list[ShardIndex]:
    """Load the indices of shards; remote ones at the same time, since each waits for the store."""
    if len(shards) < 2 or not any(map(is_remote, shards)):
        return [load_shard_index(shard) for shard in shards]
    with ThreadPoolExecutor(16) as readers:
        return list(readers.map(load_shard_index, shards))


def _find_index(shard: str, now: Mapping[str, str]) -> ShardIndex:
    cached = shard_cache_path(shard)
    for path in (shard_index_path(shard), str(cached)):
        index = _read_index(path, shard, now, is_cached=path == str(cached))
        if index is not None:
            return index
    index = build_shard_index(shard)
    if "://" not in shard:
        try:
            write_shard_index(index, shard)
            return index
        except OSError:
            pass  # the folder is not writable: use the cache
    with suppress(OSError):  # nor is the cache
        atomic_write_text(cached, _index_text(index, of=now))
    return index


def _read_index(path: str, shard: str, now: Mapping[str, str], is_cached: bool) -> ShardIndex | None:
    """Read an index; None where it is missing, damaged, of another version, or of the shard as it was before."""
    try:
        raw = json.loads(read_file(path) if is_remote(path) else Path(path).read_bytes())
        if raw.pop("checksum") != _checksum(raw):
            return None
        if raw["version"] != INDEX_VERSION or str(raw["size"]) != now.get("size", str(raw["size"])):
            return None
        if raw["of"] != now if is_cached else _is_newer(shard, path):
            return None
        entries = tuple(
            EpisodeIndexEntry(
                **{
                    **e,
                    "members": {k: (v[0], v[1]) for k, v in e["members"].items()},
                    "known_parts": tuple(e.get("known_parts", ())),
                }
            )
            for e in raw["episodes"]
        )
        return ShardIndex(raw["tar"], raw["size"], raw["hash"], entries, block_sums=str(raw.get("block_sums", "")))
    except StoreError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None


def _is_newer(shard: str, index: str) -> bool:
    """Return whether a local shard was written after its index."""
    return "://" not in shard and Path(shard).stat().st_mtime_ns > Path(index).stat().st_mtime_ns


def shard_fingerprint(shard: str) -> dict[str, str]:
    """Return size, time stamps and tags of a shard, which show without reading it whether it has changed."""
    info = file_info(shard) if is_remote(shard) else fsspec.filesystem("file").info(shard)
    keys = ("size", "mtime", "ETag", "etag", "Last-Modified", "LastModified", "updated")
    return {key: str(info[key]) for key in keys if info.get(key) is not None}


def list_shards(path: str | os.PathLike[str]) -> list[str]:
    """List the shards of a data set, sorted by name.

    Args:
        path: a folder, a tar, or an fsspec address of either; a pattern with ``*`` is expanded. Of a data set that is
            read in place (see ``vwm.data.in_place``), its address or folder.

    Raises:
        FileNotFoundError: no shard was found.
        ValueError: the address of a data set that is read in place is invalid.
    """
    text = str(path)
    if is_in_place(text):
        return find_in_place(text)
    found = _list_remote_shards(text) if is_remote(text) else _list_local_shards(text) or find_in_place(text)
    if not found:
        raise FileNotFoundError(
            f"no shards at {path}: looked for {text}. Create shards with `vwm record ENV {path}` "
            f"or `vwm ingest FOLDER {path}`."
        )
    return found


def _list_local_shards(text: str) -> list[str]:
    fs = fsspec.filesystem("file")
    if "*" in text:
        found = sorted(fs.glob(text))
    elif text.endswith(".tar"):
        found = [text]
    else:  # a name may hold brackets, which are no pattern
        found = sorted(name for name in fs.ls(text, detail=False) if name.endswith(".tar")) if fs.isdir(text) else []
    return [name for name in found if fs.exists(name)]


def _list_remote_shards(text: str) -> list[str]:
    if "*" in text:
        fs = open_file_system(text)
        names = retry(text, "the list of its files", lambda: fs.glob(fs._strip_protocol(text)))
        return sorted(str(fs.unstrip_protocol(name)) for name in names)
    if text.endswith(".tar"):
        try:
            file_info(text)
        except FileNotFoundError:
            return []
        return [text]
    return sorted(name for name in list_folder(text) if name.endswith(".tar"))
