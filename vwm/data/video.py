"""Probe videos and decode frames by their index.

The index of a frame means the same for every backend: frames count from 0 in presentation order, upright (the rotation
and the mirroring that phones store are applied), without the frames that the container's edit list removes; of several
video tracks the default one is read. PyAV defines this order. decord and torchcodec are faster, and are used where they
are known to agree with it.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vwm.data.timeouts import call_with_timeout

DECORD_TIMEOUT = 60.0
"""Seconds after which a call of decord is abandoned; decord hangs on some files."""

ONE_PACKET_ONE_FRAME = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "png", "ffv1", "rawvideo", "huffyuv"})
"""Codecs in which every packet shows exactly one frame. Videos of other codecs (VP8 has hidden frames, MPEG-4 packed
ones) are decoded to count their frames."""

VideoSource = bytes | str | os.PathLike[str]
VideoBackend = Literal["auto", "decord", "torchcodec", "pyav"]


def probe_video(source: VideoSource, name: str, progress: threading.Event | None = None) -> dict[str, Any]:
    """Return the frame count, size and frame rate of a video; most codecs need no decoding for it.

    Args:
        source: the bytes of the file, or its path.
        name: the name of the video in error messages.
        progress: set with every packet that was read.

    Returns:
        ``frames`` (exact count), ``height`` and ``width`` (upright, in pixels), ``fps`` (mean frames per second).

    Raises:
        ValueError: the video cannot be opened, or has no video stream or no frame.
    """
    with open_video(source, name) as container:
        table = _scan_packets(container, name, progress)
        stream = video_stream(container)
        height, width = stream.codec_context.height, stream.codec_context.width
        if table.orientation.quarter_turns % 2:
            height, width = width, height
        rate = stream.average_rate or stream.guessed_rate or 0
    return {"frames": table.count, "height": height, "width": width, "fps": float(rate)}


def open_video(source: VideoSource, name: str) -> av.container.InputContainer:
    """Open a video with PyAV. Use the result as a context manager.

    Raises:
        ValueError: the video cannot be opened or has no video stream.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        container = av.open(file, "r", metadata_errors="replace")  # a title need not be UTF-8
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{name}: cannot be opened as a video ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{name}: has no video stream")
    context: av.VideoCodecContext | None = video_stream(container).codec_context
    if context is None:
        container.close()
        raise ValueError(f"{name}: its codec is not known")
    context.thread_count = 1
    return container


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the track that a player shows: the first one that is marked as the default, else the first one."""
    streams = container.streams.video
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


class _Orientation(NamedTuple):
    """How a decoded frame is turned upright: mirrored first, where ``is_mirrored``, then turned counter-clockwise."""

    is_mirrored: bool
    quarter_turns: int


@dataclass(frozen=True)
class _FrameTable:
    """The frames that a video shows, and where decoding can start.

    Attributes:
        count: number of frames shown.
        pts: presentation time stamps of the frames, ascending; empty if the container lacks them.
        keyframes: (pts, seek position) of the key frames, ascending.
        orientation: of the frames.
        decord_compatible: decord is known to agree with PyAV on this video: mp4 or Matroska with one video track,
            progressive, upright, without an edit list, and no frame that is shown before the key frame that precedes it
            in the file. (decord mixes up B-frames in AVI and interlaced video, counts removed packets, and shifts clips
            after such key frames, which x265 writes by default.)
    """

    count: int
    pts: list[int]
    keyframes: list[tuple[int, int]]
    orientation: _Orientation
    decord_compatible: bool


def _scan_packets(
    container: av.container.InputContainer, name: str, progress: threading.Event | None = None
) -> _FrameTable:
    """Read all packets of a newly opened video, decoding only the first frame if the codec allows it."""
    stream = video_stream(container)
    pts: list[int] = []
    keyframes: list[tuple[int, int]] = []
    first: av.VideoFrame | None = None
    count = 0
    has_removed_frames = has_leading_frames = False
    decode_all = stream.codec_context.codec.canonical_name not in ONE_PACKET_ONE_FRAME
    has_time_stamps = not decode_all
    try:
        for packet in container.demux(stream):
            if progress is not None:
                progress.set()
            if first is None or decode_all:
                decoded = packet.decode()
                first = first or next(iter(decoded), None)
                count += len(decoded) if decode_all else 0
            if packet.size == 0:
                continue
            has_removed_frames |= packet.is_discard
            if packet.pts is None:
                has_time_stamps = False
            elif not packet.is_discard:
                pts.append(packet.pts)
                has_leading_frames |= bool(keyframes) and packet.pts < keyframes[-1][0]
            if packet.is_keyframe and packet.pts is not None:
                keyframes.append((packet.pts, min(packet.pts, packet.pts if packet.dts is None else packet.dts)))
            count += not (packet.is_discard or decode_all)
    except av.FFmpegError as error:
        if first is None:
            raise ValueError(f"{name}: no frame can be decoded ({error.strerror})") from error
    if count == 0 or first is None:
        raise ValueError(f"{name}: has no frames")
    has_time_stamps = has_time_stamps and len(set(pts)) == len(pts)
    orientation = _orientation(first)
    supported_container = bool({"mp4", "matroska"} & set(container.format.name.split(",")))
    return _FrameTable(
        count=count,
        pts=sorted(pts) if has_time_stamps else [],
        keyframes=sorted(keyframes),
        orientation=orientation,
        decord_compatible=has_time_stamps
        and supported_container
        and len(container.streams.video) == 1
        and orientation == (False, 0)
        and not (has_removed_frames or has_leading_frames or first.interlaced_frame),
    )


def _scan_file(path: str, name: str) -> _FrameTable:
    """Read the packets of a file, once in each process until it changes."""
    now = Path(path).stat()
    return _scan_unchanged_file(path, now.st_size, now.st_mtime_ns, name)


@functools.lru_cache(maxsize=32)
def _scan_unchanged_file(path: str, size: int, time: int, name: str) -> _FrameTable:
    with open_video(path, name) as container:
        return _scan_packets(container, name)


def _orientation(frame: av.VideoFrame) -> _Orientation:
    """Read the display matrix of a frame, [a b; c d] in 16.16 fixed point, which maps stored to shown positions."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _Orientation(False, 0)
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(data)[:36])
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    return _Orientation(is_mirrored, round(-math.degrees(math.atan2(b, a)) / 90) % 4)


def _upright_pixels(frame: av.VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
    """Pixels of a frame, upright: uint8 [H, W, 3]. One converter serves all frames of a video.

    It uses no threads: to set up either for every frame takes longer than to convert a small one.
    """
    pixels = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    is_mirrored, quarter_turns = _orientation(frame)
    if is_mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def decode_frames(
    source: VideoSource, indices: Sequence[int], name: str, backend: VideoBackend = "auto"
) -> NDArray[np.uint8]:
    """Decode frames of a video by their indices.

    Args:
        source: the bytes of the file, or its path.
        indices: indices of the frames, from 0, in any order; repetitions are allowed.
        name: the name of the video in errors and warnings.
        backend: ``"auto"`` uses decord if it is installed and known to agree with PyAV on the video, else PyAV.

    Returns:
        uint8 [n, H, W, 3], in the order of ``indices``.

    Raises:
        ValueError: the video cannot be opened, or an index is out of range.
        ImportError: the requested backend is not installed.
    """
    wanted = [int(i) for i in indices]
    read_decord = functools.partial(_read_decord, source, wanted)
    with open_video(source, name) as container:
        table = _scan_packets(container, name) if isinstance(source, bytes) else _scan_file(os.fspath(source), name)
        if wanted and not 0 <= min(wanted) <= max(wanted) < table.count:
            bad = min(wanted) if min(wanted) < 0 else max(wanted)
            raise ValueError(f"{name}: has no frame {bad}, only 0 to {table.count - 1}")
        if not wanted or backend == "pyav":
            return _read_pyav(container, table, wanted, name)
        if backend == "torchcodec":
            return _read_torchcodec(source, wanted, video_stream(container).index)
        if backend == "decord":
            return call_with_timeout(functools.partial(read_decord, table.count), DECORD_TIMEOUT)
        if table.decord_compatible and importlib.util.find_spec("decord") is not None:
            try:
                return call_with_timeout(functools.partial(read_decord, table.count), DECORD_TIMEOUT)
            except TimeoutError:
                warnings.warn(f"{name}: decord hung for {DECORD_TIMEOUT:g} s, reading with PyAV instead", stacklevel=2)
            except RuntimeError:
                pass  # decord cannot read it: PyAV may, or gives a better error
        return _read_pyav(container, table, wanted, name)


def _read_decord(source: VideoSource, indices: list[int], count: int) -> NDArray[np.uint8]:
    import decord

    file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    try:
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != count:
            raise RuntimeError(f"decord counts {len(reader)} frames, PyAV {count}")
        frames: NDArray[np.uint8] = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, IndexError) as error:
        raise RuntimeError(f"decord: {error}") from error
    return frames


def _read_torchcodec(source: VideoSource, indices: list[int], stream_index: int) -> NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder

    file = source if isinstance(source, bytes) else os.fspath(source)
    decoder = VideoDecoder(
        file, stream_index=stream_index, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1
    )
    frames: NDArray[np.uint8] = decoder.get_frames_at(indices).data.numpy()
    return frames


def _read_pyav(
    container: av.container.InputContainer, table: _FrameTable, indices: list[int], name: str
) -> NDArray[np.uint8]:
    """Seek to the key frame before each requested frame; without time stamps, decode from the start."""
    found: dict[int, NDArray[np.uint8]] = {}
    if table.pts:
        wanted = {table.pts[i]: i for i in indices}
        for start in sorted({_seek_position(table, t) for t in wanted}):
            _decode_wanted_frames(
                container, start, {t: i for t, i in wanted.items() if _seek_position(table, t) == start}, found
            )
    if not set(indices) <= set(found):
        container.seek(0, backward=True)
        for index, (_, frame) in zip(range(max(indices) + 1), iterate_frames(container, name), strict=False):
            if index in indices:
                found[index] = frame
    missing = sorted(set(indices) - set(found))
    if missing:
        raise ValueError(f"{name}: frame {missing[0]} cannot be decoded; the file is damaged or truncated")
    if not indices:
        stream = video_stream(container).codec_context
        return np.empty((0, stream.height, stream.width, 3), np.uint8)
    return np.stack([found[i] for i in indices])


def _seek_position(table: _FrameTable, pts: int) -> int:
    """Position from which decoding yields the frame of this time stamp, with all frames that it refers to."""
    index = bisect.bisect_right(table.keyframes, pts, key=lambda keyframe: keyframe[0]) - 1
    return table.keyframes[index][1] if index >= 0 else table.pts[0]


def _decode_wanted_frames(
    container: av.container.InputContainer, start: int, wanted: dict[int, int], found: dict[int, NDArray[np.uint8]]
) -> None:
    """Decode from ``start`` and store the frames in ``wanted`` (time stamp to frame index) in ``found``."""
    stream = video_stream(container)
    last = max(wanted)
    converter = VideoReformatter()
    try:
        container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found[wanted[frame.pts]] = _upright_pixels(frame, converter)
            if frame.pts is None or frame.pts >= last:
                return
    except av.FFmpegError:
        return  # the caller decodes missing frames from the start, and reports those that fail again


def iterate_frames(
    container: av.container.InputContainer, name: str
) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
    """Decode an open video from its current position, frame by frame.

    Yields:
        (time in seconds, or None if the container lacks time stamps; frame, uint8 [H, W, 3]).

    Raises:
        ValueError: a frame cannot be decoded. All frames yielded before it are valid.
    """
    stream, converter = video_stream(container), VideoReformatter()
    try:
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise ValueError(f"{name}: frame {index} is damaged")
            yield frame.time, _upright_pixels(frame, converter)
    except av.FFmpegError as error:
        raise ValueError(f"{name}: is damaged or truncated ({error.strerror})") from error
