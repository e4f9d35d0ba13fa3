"""Read frames of videos, in shards or files of their own, by the byte ranges of their packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vwm.data.shard_reading import read_bytes
from vwm.data.video import VideoSource, decode_frames, open_video, video_stream

PACKED_CODECS = ("h264", "av1")
"""Codecs whose packets are decoded without their container, in its order. An AV1 packet may hold hidden frames too."""


def read_video_frames(path: str, offset: int, size: int, indices: Sequence[int], name: str) -> NDArray[np.uint8]:
    """Read frames of a video in a shard, uint8 [n, H, W, 3].

    Args:
        path: of the shard.
        offset, size: position of the video in it, in bytes.
        indices: of the frames, ascending.
        name: the name of the video in error messages.
    """
    packets = _packet_table(path, offset, size, name)
    frames = None if packets is None else _decode_packets(path, packets, indices)
    return decode_frames(_read_video(path, offset, size), indices, name) if frames is None else frames


def read_file_frames(path: str, indices: Sequence[int], name: str) -> NDArray[np.uint8]:
    """Read frames of a video in a file of its own, uint8 [n, H, W, 3].

    The file is searched for the places of its packets once in each process, whatever its length.

    Args:
        path: of the file.
        indices: of the frames, ascending.
        name: the name of the video in error messages.

    Raises:
        ValueError: the video cannot be opened, or an index is out of range.
    """
    try:
        now = Path(path).stat()
    except OSError as error:
        raise ValueError(f"{name}: cannot be opened as a video ({error.strerror})") from error
    packets = _file_packet_table(path, now.st_size, now.st_mtime_ns, name)
    frames = None if packets is None else _decode_packets(path, packets, indices)
    return decode_frames(path, indices, name) if frames is None else frames


@lru_cache(maxsize=8)
def _read_video(path: str, offset: int, size: int) -> bytes:
    """Read a whole video. Cached, because clips of one episode are close together in the clip order."""
    return read_bytes(path, offset, size)


@dataclass(frozen=True)
class _PacketTable:
    """The position in its shard of every frame of a simple video.

    Attributes:
        offset: int64 [T], offset in the shard of the packet of each frame.
        size: int64 [T], size of the packet in bytes.
        keyframes: int64 [k], indices of the frames at which decoding can start.
        codec: name of the codec.
        extradata: initialization data of the decoder.
    """

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    codec: str
    extradata: bytes | None


@lru_cache(maxsize=4096)
def _packet_table(path: str, offset: int, size: int, name: str) -> _PacketTable | None:
    """Scan the packets of a video once, so that its clips need not open it again; about 5 kB per video."""
    data = _read_video(path, offset, size)
    return _scan_packets(data, lambda position, length: data[position : position + length], offset, name)


@lru_cache(maxsize=128)
def _file_packet_table(path: str, size: int, time: int, name: str) -> _PacketTable | None:
    """Scan the packets of a file; about 17 bytes a frame. A file that has taken its place has another size or time."""
    return _scan_packets(path, lambda position, length: read_bytes(path, position, length), 0, name)


def _scan_packets(
    source: VideoSource, read: Callable[[int, int], bytes], offset: int, name: str
) -> _PacketTable | None:
    """Find the packets of a video.

    Returns None if a packet is not simply the next frame (B-frames, edit lists, rotated or interlaced frames), or if
    the file does not store the packets as the decoder takes them. ``decode_frames`` handles these videos.

    Args:
        source: the video.
        read: reads bytes of it, by their position and number.
        offset: of the video in its shard.
        name: the name of the video in error messages.
    """
    rows: list[tuple[int, int, bool, int]] = []
    with open_video(source, name) as container:
        stream = video_stream(container)
        context = stream.codec_context
        simple = context.codec.canonical_name in PACKED_CODECS and "mp4" in container.format.name
        simple = simple and context.extradata is not None
        try:
            for packet in container.demux(stream) if simple else ():
                if not packet.size:
                    continue
                if not rows:
                    first = next(iter(packet.decode() or context.decode(None)), None)
                    simple &= first is not None and not (first.interlaced_frame or first.side_data.get("DISPLAYMATRIX"))
                position = -1 if packet.pos is None else packet.pos
                simple &= packet.pts is not None and not packet.is_discard and position >= 0
                simple = simple and read(position, packet.size) == bytes(packet)
                if not simple:
                    break
                rows.append((offset + position, packet.size, packet.is_keyframe, packet.pts or 0))
        except (av.FFmpegError, ValueError):
            return None
    if not simple or not rows or not rows[0][2]:
        return None
    offsets, sizes, is_keyframe, pts = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    if (np.diff(pts) <= 0).any():
        return None
    return _PacketTable(
        offset=offsets,
        size=sizes,
        keyframes=np.flatnonzero(is_keyframe),
        codec=context.name,
        extradata=context.extradata,
    )


def _decode_packets(path: str, table: _PacketTable, indices: Sequence[int]) -> NDArray[np.uint8] | None:
    """Decode ascending frames of a simple video, reading only from the key frame before the first to the last one.

    Returns None if a packet does not decode to exactly one frame.
    """
    first = int(table.keyframes[np.searchsorted(table.keyframes, indices[0], side="right") - 1])
    stop = indices[-1] + 1
    if stop > len(table.offset):
        return None
    offsets = table.offset[first:stop]
    sizes = table.size[first:stop]
    begin = int(offsets.min())
    end = int((offsets + sizes).max())
    data = read_bytes(path, begin, end - begin)
    context: Any = av.CodecContext.create(table.codec, "r")
    context.extradata = table.extradata
    context.thread_count = 1
    decoded: list[av.VideoFrame] = []
    try:
        for offset, size in zip((offsets - begin).tolist(), sizes.tolist(), strict=True):
            decoded += context.decode(av.Packet(data[offset : offset + size]))
        decoded += context.decode(None)
    except av.FFmpegError:
        return None
    if len(decoded) != stop - first or any(frame.is_corrupt for frame in decoded):
        return None
    # One converter for all frames and no threads: setting up either takes longer than decoding.
    converter = VideoReformatter()
    return np.stack([converter.reformat(decoded[i - first], format="rgb24", threads=1).to_ndarray() for i in indices])
