"""The sidecar index: where every member of a shard lies, so that a clip is read by offset and never by scanning.

``shard-000000.tar`` has ``shard-000000.index.json`` beside it. Where it is missing (somebody else's shards) it is
rebuilt by one pass over the tar, and kept: beside the shard if that folder can be written, else in the user's cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np

from vwm.data.video import VIDEO_EXTENSIONS, probe_video

INDEX_VERSION = 1


@dataclass(frozen=True)
class EpisodeIndexEntry:
    """Where one episode lies in its shard.

    Attributes:
        key: the WebDataset key.
        frames: number of frames.
        height, width: of a frame, in pixels.
        fps: frames a second; 0 where unknown.
        members: extension (``"frames.npy"``, ``"mp4"``, ``"actions.npy"``, ...) to (byte offset in the tar, bytes).
    """

    key: str
    frames: int
    height: int
    width: int
    fps: float
    members: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ShardIndex:
    """The table of contents of one tar; ``hash`` is a hash of its members' names and bytes."""

    tar: str
    hash: str
    episodes: tuple[EpisodeIndexEntry, ...]


def shard_index_path(shard: str | os.PathLike[str]) -> str:
    """``.../shard-000000.tar`` to ``.../shard-000000.index.json``."""
    return str(shard).removesuffix(".tar") + ".index.json"


def build_shard_index(shard: str, name: str | None = None) -> ShardIndex:
    """Read a tar from end to end and make its index.

    Args:
        shard: path or fsspec address of the tar.
        name: the name to record, where the tar does not yet bear it.

    Raises:
        ValueError: the file is no whole tar, or a sample in it cannot be understood; the message names both.
    """
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    small: dict[tuple[str, str], bytes] = {}
    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, file_name = member.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                if not stem or not extension:  # ".hidden", "README": no member of a sample, for WebDataset too
                    continue
                key, extension = folder + slash + stem, extension.lower()
                samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                digest.update(f"{member.name}\0{member.size}\0".encode())
                digest.update(data)
                if extension == "json" or extension.endswith("npy"):
                    small[key, extension] = data if extension == "json" else data[:256]
                elif extension in VIDEO_EXTENSIONS:
                    small[key, extension] = json.dumps(probe_video(data, f"{shard}:{member.name}")).encode()
            file.seek(tar.offset)
            if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:  # Python takes that for an end, too
                raise tarfile.ReadError("the mark of its end is missing")
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not a whole tar file ({error}). Write or download this shard again.") from error
    entries = [_make_entry(shard, key, members, small) for key, members in samples.items()]
    return ShardIndex(name or os.path.basename(shard), digest.hexdigest(), tuple(e for e in entries if e is not None))


def _make_entry(
    shard: str, key: str, members: dict[str, tuple[int, int]], small: dict[tuple[str, str], bytes]
) -> EpisodeIndexEntry | None:
    """One episode from its members' headers; None for a sample that holds no video at all."""
    meta: dict[str, Any] = {}
    if "json" in members:
        try:
            meta = json.loads(small[key, "json"])
        except json.JSONDecodeError as error:
            raise ValueError(f"{shard}:{key}.json is not JSON ({error})") from error
    video = next((e for e in members if e in VIDEO_EXTENSIONS), None)
    if "frames.npy" in members:
        shape = _npy_shape(shard, key, "frames.npy", small)
        if len(shape) != 4:
            raise ValueError(f"{shard}:{key}.frames.npy must be [T, H, W, 3], got {list(shape)}")
        frames, height, width, _ = shape
    elif video is not None:
        probed = json.loads(small[key, video])
        frames, height, width = probed["frames"], probed["height"], probed["width"]
        meta.setdefault("fps", probed["fps"])
    elif "latents.npy" in members:
        frames = _npy_shape(shard, key, "latents.npy", small)[0]
        height, width = int(meta.get("height", 0)), int(meta.get("width", 0))
    else:
        return None
    return EpisodeIndexEntry(key, int(frames), int(height), int(width), float(meta.get("fps", 0)), members)


def _npy_shape(shard: str, key: str, extension: str, small: dict[tuple[str, str], bytes]) -> tuple[int, ...]:
    try:
        return parse_npy_header(small[key, extension])[0]
    except ValueError as error:
        raise ValueError(f"{shard}:{key}.{extension} cannot be read ({error})") from error


def parse_npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and length of the header of an ``.npy`` file, from its first bytes.

    Raises:
        ValueError: not an npy file, Fortran order, or an object array (which would need unpickling).
    """
    file: IO[bytes] = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format
    read: Callable[..., Any] = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran or dtype.hasobject:
        raise ValueError("npy members must be C-ordered arrays of plain numbers")
    return shape, dtype, file.tell()


def write_shard_index(index: ShardIndex, shard: str | os.PathLike[str]) -> None:
    """Write the index beside its shard (aside, then renamed)."""
    _write_json_atomically(Path(shard_index_path(shard)), {"version": INDEX_VERSION, **asdict(index)})


def _write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # several ranks may write the same index at once
    aside.write_text(json.dumps(content))
    aside.rename(path)


def load_shard_index(shard: str) -> ShardIndex:
    """The index of a shard: from its sidecar, from the user's cache, or rebuilt from the tar.

    Args:
        shard: local path or fsspec address (``s3://``, ``gs://``, ``https://``, ...).
    """
    cached = _cache_path(shard)
    for place in (shard_index_path(shard), str(cached)):
        try:
            with fsspec.open(place, "r") as file:
                raw = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if raw.get("version") != INDEX_VERSION or (place == str(cached) and raw.get("of") != _fingerprint(shard)):
            continue
        entries = tuple(
            EpisodeIndexEntry(**{**e, "members": {k: (v[0], v[1]) for k, v in e["members"].items()}})
            for e in raw["episodes"]
        )
        return ShardIndex(raw["tar"], raw["hash"], entries)
    fingerprint = _fingerprint(shard)
    index = build_shard_index(shard)
    if "://" not in shard:
        try:
            write_shard_index(index, shard)
            return index
        except OSError:
            pass  # a folder that cannot be written
    cached.parent.mkdir(parents=True, exist_ok=True)
    _write_json_atomically(cached, {"version": INDEX_VERSION, **asdict(index), "of": fingerprint})
    return index


def _fingerprint(shard: str) -> dict[str, str]:
    """What a file system says of a shard without reading it, to notice that it is another one now."""
    fs, _, (path,) = fsspec.get_fs_token_paths(shard)
    info = fs.info(path)
    keys = ("size", "mtime", "ETag", "etag", "Last-Modified", "LastModified", "updated")
    return {key: str(info[key]) for key in keys if info.get(key) is not None}


def _cache_path(shard: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vwm" / "index"
    return root / (hashlib.blake2b(shard.encode(), digest_size=16).hexdigest() + ".index.json")


def list_shards(path: str | os.PathLike[str]) -> list[str]:
    """The tars of a data set, sorted by name.

    Args:
        path: a folder, a tar, or an fsspec address of either; a pattern with ``*`` is expanded.

    Raises:
        FileNotFoundError: there is none.
    """
    text = str(path)
    if not text.endswith(".tar") and "*" not in text:
        text = text.rstrip("/") + "/*.tar"
    fs, _, _ = fsspec.get_fs_token_paths(text)
    found = sorted(fs.glob(text)) if "*" in text else [text]
    if "://" in text:
        found = [fs.unstrip_protocol(f) for f in found]
    found = [f for f in found if fs.exists(f)]
    if not found:
        raise FileNotFoundError(
            f"no shards at {path}: looked for {text}. Make some with `vwm record ENV {path}` "
            f"or `vwm ingest FOLDER {path}`."
        )
    return found
