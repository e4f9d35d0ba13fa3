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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from vwm.core.atomic_files import atomic_write_text
from vwm.data.episode_entry import EpisodeIndexEntry as EpisodeIndexEntry
from vwm.data.episode_entry import make_episode_entry
from vwm.data.video_formats import VIDEO_EXTENSIONS

INDEX_VERSION = 2


@dataclass(frozen=True)
class ShardIndex:
    """The table of contents of one tar.

    Attributes:
        tar: file name.
        size: of the tar in bytes.
        hash: of the names and bytes of its members.
        episodes: in the order of the tar.
    """

    tar: str
    size: int
    hash: str
    episodes: tuple[EpisodeIndexEntry, ...]


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
    return ShardIndex(tar=os.path.basename(shard), size=size, hash=digest.hexdigest(), episodes=episodes)


@contextmanager
def _open_whole(shard: str) -> Iterator[BinaryIO]:
    """Open a shard at its start; a remote one is downloaded, which needs no server that knows byte ranges."""
    if "://" not in shard:
        with Path(shard).open("rb") as file:
            yield file
        return
    fs, inner = fsspec.url_to_fs(shard)
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        fs.get_file(inner, copy.name)
        with Path(copy.name).open("rb") as file:
            yield file


def write_shard_index(index: ShardIndex, shard: str | os.PathLike[str]) -> None:
    """Write the index next to its shard, atomically."""
    atomic_write_text(shard_index_path(shard), _index_text(index))


def _index_text(index: ShardIndex, **more: Any) -> str:
    """Return an index as JSON, with a checksum of everything else in it."""
    content: dict[str, Any] = {"version": INDEX_VERSION, **asdict(index), **more}
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
    now = shard_fingerprint(shard)
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
        with fsspec.open(path, "r") as file:
            raw = json.load(file)
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
        return ShardIndex(tar=raw["tar"], size=raw["size"], hash=raw["hash"], episodes=entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None


def _is_newer(shard: str, index: str) -> bool:
    """Return whether a local shard was written after its index."""
    return "://" not in shard and Path(shard).stat().st_mtime_ns > Path(index).stat().st_mtime_ns


def shard_fingerprint(shard: str) -> dict[str, str]:
    """Return size, time stamps and tags of a shard, which show without reading it whether it has changed."""
    fs, _, (path,) = fsspec.get_fs_token_paths(shard)
    info = fs.info(path)
    keys = ("size", "mtime", "ETag", "etag", "Last-Modified", "LastModified", "updated")
    return {key: str(info[key]) for key in keys if info.get(key) is not None}


def shard_cache_path(shard: str, state: str = "", suffix: str = ".index.json") -> Path:
    """Return the path in the user's cache of a file that belongs to a shard, or to one state of it."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vwm" / "shards"
    return root / (hashlib.blake2b((shard + state).encode(), digest_size=16).hexdigest() + suffix)


def list_shards(path: str | os.PathLike[str]) -> list[str]:
    """List the shards of a data set, sorted by name.

    Args:
        path: a folder, a tar, or an fsspec address of either; a pattern with ``*`` is expanded.

    Raises:
        FileNotFoundError: no shard was found.
    """
    text = str(path)
    is_tar, is_pattern = text.endswith(".tar"), "*" in text
    fs, inner = fsspec.url_to_fs(text)
    if is_pattern:
        found = sorted(fs.glob(text))
    elif is_tar:
        found = [text]
    else:  # a name may hold brackets, which are no pattern
        names = fs.ls(inner, detail=False) if fs.isdir(inner) else []
        found = sorted(name for name in names if name.endswith(".tar"))
    if "://" in text and not (is_tar and not is_pattern):
        found = [fs.unstrip_protocol(f) for f in found]
    found = [f for f in found if fs.exists(f)]
    if not found:
        raise FileNotFoundError(
            f"no shards at {path}: looked for {text}. Create shards with `vwm record ENV {path}` "
            f"or `vwm ingest FOLDER {path}`."
        )
    return found
