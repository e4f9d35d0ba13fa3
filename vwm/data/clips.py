"""Reading clips: from a shard by byte offset, into a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import fsspec
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vwm.data.clip_order import ClipAddress, ClipOrder
from vwm.data.episode_selection import hash_threshold, key_hash
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex, parse_npy_header
from vwm.data.video import VIDEO_EXTENSIONS, decode_frames, open_video

NPY_HEADER_BYTES = 128
"""Bytes of the header that numpy writes before any array of ours."""


@dataclass
class ClipBatch:
    """A batch of clips. Fields that the data lack, or that nobody asked for, are None.

    Attributes:
        frames: uint8 [b, t, h, w, 3].
        actions: int64 [b, t] or float32 [b, t, a]; ``actions[:, i]`` leads from frame i to i+1.
        rewards: float32 [b, t].
        state: float32 [b, t, s], what the environment said of itself.
        latents: int64 [b, t, ...] tokens or float32 [b, t, ...] latents of an encoded data set.
        latents_std: float32 [b, t, ...], deviations about the latents, where the tokenizer's posterior was kept.
        seed: int64 [b], for augmentation.
        terminated: bool [b, t], True where the action taken there ended the world: at most at an episode's last frame.
        labelled: bool [b], whether a clip's actions are given (else they are 0); None where all are.
    """

    frames: Tensor = None  # type: ignore[assignment]  # absent only where nobody asked for pixels
    actions: Tensor | None = None
    rewards: Tensor | None = None
    state: Tensor | None = None
    latents: Tensor | None = None
    latents_std: Tensor | None = None
    seed: Tensor | None = None
    terminated: Tensor | None = None
    labelled: Tensor | None = None


CLIP_FIELDS = ("frames", "actions", "rewards", "state", "latents", "latents_std", "terminated")
LABELLED_SALT = b"labelled"
"""Salt of the choice of labelled episodes, which has nothing to do with that of the held-out ones."""


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips by ``(epoch, position)``.

    Args:
        paths: the shards, local paths or fsspec addresses.
        shards: their indices.
        order: which clip stands where.
        clip_length: frames a clip.
        stride: frames from one frame of a clip to its next.
        fields: what to read; a field that an episode lacks is left out of the clip.
        labelled: share of the episodes whose actions are given; those of the others are 0. Chosen by a hash of their
            keys, so that the ones of a share are among those of any larger one.

    Raises:
        ValueError: actions, rewards or terminated with a stride over 1, where one entry would no longer lead to the
            next frame; a share that is none.
    """

    def __init__(
        self,
        paths: Sequence[str],
        shards: Sequence[ShardIndex],
        order: ClipOrder,
        clip_length: int,
        stride: int = 1,
        fields: Sequence[str] = ("frames", "actions"),
        labelled: float = 1.0,
    ) -> None:
        unknown = set(fields) - set(CLIP_FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}; there are {', '.join(CLIP_FIELDS)}")
        if stride > 1 and {"actions", "rewards", "terminated"} & set(fields):
            raise ValueError(
                f"stride={stride} skips frames, so actions and rewards would not lead to the next frame: ask for "
                f"fields=[frames] only, or record with a frame skip (vwm record --frame_skip {stride})"
            )
        self.paths, self.shards, self.order = list(paths), list(shards), order
        self.clip_length, self.stride, self.fields = clip_length, stride, tuple(fields)
        if not 0 <= labelled <= 1:
            raise ValueError(f"labelled must be a share from 0 to 1, got {labelled}")
        self.labelled = labelled
        keys = (entry.key for shard in shards for entry in shard.episodes)
        self._label_limit = hash_threshold(keys, labelled, LABELLED_SALT) if labelled < 1 else 1.0

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        return self.read(self.order.address(*at))

    def read(self, address: ClipAddress) -> dict[str, Any]:
        """The fields of one clip, each an array [t, ...], and its ``seed``."""
        path, entry = self.paths[address.shard], self.shards[address.shard].episodes[address.episode]
        stop = address.start + (self.clip_length - 1) * self.stride + 1
        clip: dict[str, Any] = {"seed": np.int64(address.seed)}
        for field in self.fields:
            if f"{field}.npy" in entry.members:
                clip[field] = _read_npy_rows(path, entry, field, address.start, stop)[:: self.stride]
            elif field == "frames":
                clip[field] = _decode_video_frames(path, entry, range(address.start, stop, self.stride))
            elif field == "terminated" and "terminated" in (meta := read_episode_metadata(path, entry)):
                clip[field] = np.zeros(self.clip_length, bool)
                clip[field][-1] = meta["terminated"] and stop == entry.frames
        if self.labelled < 1:
            clip["labelled"] = np.bool_(key_hash(entry.key, LABELLED_SALT) < self._label_limit)
            if "actions" in clip and not clip["labelled"]:
                clip["actions"] = np.zeros_like(clip["actions"])
        return clip


def _read_npy_rows(path: str, entry: EpisodeIndexEntry, field: str, start: int, stop: int) -> NDArray[Any]:
    """Rows of an array of an episode, by their byte range alone."""
    (offset, size), name = entry.members[f"{field}.npy"], f"{path}:{entry.key}.{field}.npy"
    header = _read_bytes(path, offset, min(size, NPY_HEADER_BYTES))
    shape, dtype, data = parse_npy_header(header)
    if stop > shape[0]:
        raise ValueError(f"{name}: has {shape[0]} rows, one for each of at least {stop} frames was expected")
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    raw = _read_bytes(path, offset + data + start * row, (stop - start) * row)
    return np.frombuffer(raw, dtype=dtype).reshape(stop - start, *shape[1:])


def _decode_video_frames(path: str, entry: EpisodeIndexEntry, frames: Sequence[int]) -> NDArray[np.uint8]:
    extension = next((e for e in entry.members if e in VIDEO_EXTENSIONS), None)
    if extension is None:
        raise ValueError(
            f"{path}: episode {entry.key!r} holds no frames (it has {', '.join(entry.members)}). Train with "
            f"data.fields=[latents, actions], or encode with --keep_video true"
        )
    where, name = entry.members[extension], f"{path}:{entry.key}.{extension}"
    packets = _packet_table(path, *where, name)
    decoded = None if packets is None else _decode_packets(path, packets, frames)
    return decode_frames(_read_member_cached(path, *where), frames, name) if decoded is None else decoded


@dataclass(frozen=True)
class _PacketTable:
    """Where the frames of a simple video lie in its shard.

    Attributes:
        offset: int64 [T], of frame i's packet in the shard.
        size: int64 [T], bytes.
        keys: int64 [k], the frames that decoding can begin at.
        codec: the codec's name.
        extradata: what its decoder is set up with.
    """

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    keys: NDArray[np.int64]
    codec: str
    extradata: bytes | None


@lru_cache(maxsize=4096)
def _packet_table(path: str, offset: int, size: int, name: str) -> _PacketTable | None:
    """One pass over the packets of a video, so that its clips need not open it again; some 5 kB a video.

    None where a packet is not simply the next frame (B-frames, edit lists, turned or interlaced pictures), or where
    the file does not hold it as the decoder wants it: ``decode_frames`` knows about all that.
    """
    data = _read_member_cached(path, offset, size)
    rows: list[tuple[int, int, bool, int]] = []
    with open_video(data, name) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        simple = context.name == "h264" and "mp4" in container.format.name and context.extradata is not None
        try:
            for packet in container.demux(stream) if simple else ():
                if not packet.size:
                    continue
                if not rows:
                    first = next(iter(packet.decode() or context.decode(None)), None)
                    simple &= first is not None and not (first.interlaced_frame or round(first.rotation / 90) % 4)
                at = -1 if packet.pos is None else packet.pos
                simple &= packet.pts is not None and not packet.is_discard and at >= 0
                simple = simple and data[at : at + packet.size] == bytes(packet)
                rows.append((offset + at, packet.size, packet.is_keyframe, packet.pts or 0))
        except av.FFmpegError:
            return None
    if not simple or not rows or not rows[0][2]:
        return None
    at_, size_, key, pts = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    if (np.diff(pts) <= 0).any():
        return None
    return _PacketTable(at_, size_, np.flatnonzero(key), "h264", context.extradata)


def _decode_packets(path: str, table: _PacketTable, frames: Sequence[int]) -> NDArray[np.uint8] | None:
    """Ascending frames of a simple video, from the bytes between the key frame before them and the last of them."""
    first = int(table.keys[np.searchsorted(table.keys, frames[0], side="right") - 1])
    stop = frames[-1] + 1
    if stop > len(table.offset):
        return None
    begin, end = int(table.offset[first:stop].min()), int((table.offset + table.size)[first:stop].max())
    data = _read_bytes(path, begin, end - begin)
    context: Any = av.CodecContext.create(table.codec, "r")
    context.extradata, context.thread_count = table.extradata, 1
    decoded: list[av.VideoFrame] = []
    try:
        for at, size in zip((table.offset - begin)[first:stop].tolist(), table.size[first:stop].tolist(), strict=True):
            decoded += context.decode(av.Packet(data[at : at + size]))
        decoded += context.decode(None)
    except av.FFmpegError:
        return None
    if len(decoded) != stop - first or any(frame.is_corrupt for frame in decoded):
        return None
    # One converter for all frames and no threads: setting up either costs more than the decoding.
    convert = VideoReformatter()
    return np.stack([convert.reformat(decoded[i - first], format="rgb24", threads=1).to_ndarray() for i in frames])


def read_member_bytes(path: str, where: tuple[int, int]) -> bytes:
    """The bytes of a member, by its (offset, size)."""
    return _read_bytes(path, *where)


def read_episode_frames(path: str, entry: EpisodeIndexEntry) -> NDArray[np.uint8]:
    """All frames of an episode, uint8 [T, H, W, 3]."""
    if "frames.npy" in entry.members:
        return _read_npy_rows(path, entry, "frames", 0, entry.frames)
    return _decode_video_frames(path, entry, range(entry.frames))


def read_episode_metadata(path: str, entry: EpisodeIndexEntry) -> dict[str, Any]:
    """What the json of an episode says (fps, source, action names, ...); empty where it has none."""
    if "json" not in entry.members:
        return {}
    meta: dict[str, Any] = json.loads(_read_bytes(path, *entry.members["json"]))
    return meta


@lru_cache(maxsize=8)
def _read_member_cached(path: str, offset: int, size: int) -> bytes:
    """A whole video member; kept, since several clips of an episode stand close together in a block."""
    return _read_bytes(path, offset, size)


def _read_bytes(path: str, offset: int, size: int) -> bytes:
    if "://" not in path:
        return os.pread(_file_descriptor(path, os.getpid()), size, offset)
    fs, _, (inner,) = fsspec.get_fs_token_paths(path)
    return bytes(fs.cat_file(inner, start=offset, end=offset + size))


@lru_cache(maxsize=256)
def _file_descriptor(path: str, process: int) -> int:
    """An open file a shard and process; pread needs no seek, so nothing is shared but the number."""
    return os.open(path, os.O_RDONLY)


def collate_clips(clips: Sequence[dict[str, Any]]) -> ClipBatch:
    """Stack clips into a batch. Raises ValueError where the clips do not fit each other, naming the field."""
    batch: dict[str, Tensor] = {}
    for field in {field: None for clip in clips for field in clip}:
        arrays = [clip.get(field) for clip in clips]
        shapes = {None if a is None else a.shape for a in arrays}
        if len(shapes) > 1:
            raise ValueError(
                f"clips of one batch differ in {field}: {sorted(map(str, shapes))}. Ingest or record them into one "
                f"size, or leave {field} out of data.fields"
            )
        stacked = np.stack([a for a in arrays if a is not None])
        if field in ("actions", "latents") and stacked.dtype.kind in "iu":
            stacked = stacked.astype(np.int64)
        if field.startswith("latents") and stacked.dtype == np.float16:
            stacked = stacked.astype(np.float32)
        batch[field] = torch.from_numpy(stacked)
    return ClipBatch(**batch)
