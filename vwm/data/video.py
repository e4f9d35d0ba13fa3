"""Frames to compressed video and back: encoding with a short GOP, probing, and reading frames by their number.

The number of a frame means the same to every backend: frames count from 0 in the order in which a player shows
them, upright (a phone's rotation is applied), without what the container's edit list cuts away. PyAV defines that
order here; decord and torchcodec read where they provably agree with it, because they are faster.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import io
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "m4v")
"""Extensions, in lower case and without the dot, of the files that count as videos."""

DECORD_TIMEOUT = 60.0
"""Seconds after which a call of decord, which is known to hang on some files, is given up."""

ONE_PACKET_ONE_FRAME = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "png", "ffv1", "rawvideo", "huffyuv"})
"""Codecs of which every packet shows exactly one frame. The others (VP8's hidden frames, MPEG-4's packed ones) are
decoded to be counted."""

VideoSource = bytes | str | os.PathLike[str]
VideoBackend = Literal["auto", "decord", "torchcodec", "pyav"]
T = TypeVar("T")


# --------------------------------------------------------------------------------------------------- writing


def encode_video(frames: NDArray[np.uint8], fps: float, crf: int = 16, gop: int = 12) -> bytes:
    """Compress frames to an H.264 mp4; equal input gives equal bytes.

    Args:
        frames: uint8 [T, H, W, 3]; odd heights and widths keep their size (they are stored as 4:4:4).
        fps: frames a second.
        crf: x264's quality, 0 (lossless luma) to 51 (worst).
        gop: frames from one key frame to the next; short, so that a random clip is reached quickly.

    Raises:
        ValueError: frames of another type or shape, or fps not above 0.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with no empty side, got {frames.dtype} {frames.shape}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    height, width = frames.shape[1:3]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread, no B-frames: equal bytes on every machine, and seeking that no decoder gets wrong.
        options = {"crf": str(crf), "g": str(gop), "bf": "0", "preset": "fast", "threads": "1"}
        rate = Fraction(fps).limit_denominator(10_000)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = 1 / rate
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_video(path: str | os.PathLike[str], frames: NDArray[np.uint8], fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] as ``.mp4`` or ``.gif``, by the suffix of ``path``; whole or not at all.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".mp4":
        data = encode_video(frames, fps)
    elif path.suffix == ".gif":
        data = _encode_gif(frames, fps)
    else:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; name it .mp4 or .gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(data)
    aside.replace(path)


def _encode_gif(frames: NDArray[np.uint8], fps: float) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    first, *rest = [Image.fromarray(f) for f in np.asarray(frames)]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return file.getvalue()


# --------------------------------------------------------------------------------------------------- probing


def probe_video(source: VideoSource, name: str) -> dict[str, Any]:
    """Count and measure a video without decoding it (for most codecs).

    Args:
        source: the file's bytes, or its path.
        name: what to call the video in errors.

    Returns:
        ``frames`` (exact), ``height``, ``width`` (upright, pixels), ``fps`` (the mean rate, frames a second).

    Raises:
        ValueError: it cannot be opened, holds no video stream, or no frame.
    """
    with open_video(source, name) as container:
        table = _scan_packets(container, name)
        stream = container.streams.video[0]
        height, width = stream.codec_context.height, stream.codec_context.width
        if table.turned % 2:
            height, width = width, height
        rate = stream.average_rate or stream.guessed_rate or 0
    return {"frames": table.count, "height": height, "width": width, "fps": float(rate)}


def open_video(source: VideoSource, name: str) -> av.container.InputContainer:
    """Open a video for PyAV, to be used as a context manager.

    Raises:
        ValueError: it cannot be opened or holds no video stream.
    """
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source), "r")
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{name}: cannot be opened as a video ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{name}: has no video stream")
    container.streams.video[0].codec_context.thread_count = 1
    return container


@dataclass(frozen=True)
class _FrameTable:
    """Which frames a video shows, and where decoding can start.

    Attributes:
        count: number of frames shown.
        pts: time stamps of the frames in the order shown; empty where the container does not date its packets.
        keys: (pts, where to seek) of the key frames, ascending.
        turned: quarter turns counter-clockwise that set a frame upright.
        plain: decord is known to agree: mp4 or Matroska, progressive, upright, nothing cut by an edit list. (It
            scrambles B-frames in AVI and interlaced video, and counts packets that are cut.)
    """

    count: int
    pts: list[int]
    keys: list[tuple[int, int]]
    turned: int
    plain: bool


def _scan_packets(container: av.container.InputContainer, name: str) -> _FrameTable:
    """Read the packets of a freshly opened video from end to end, decoding only the first frame."""
    stream = container.streams.video[0]
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    first: av.VideoFrame | None = None
    count, cut = 0, False
    decode_all = stream.codec_context.codec.canonical_name not in ONE_PACKET_ONE_FRAME
    dated = not decode_all
    try:
        for packet in container.demux(stream):
            if first is None or decode_all:
                decoded = packet.decode()
                first = first or next(iter(decoded), None)
                count += len(decoded) if decode_all else 0
            if packet.size == 0:
                continue
            cut |= packet.is_discard
            if packet.pts is None:
                dated = False
            elif not packet.is_discard:
                pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, min(packet.pts, packet.pts if packet.dts is None else packet.dts)))
            count += not (packet.is_discard or decode_all)
    except av.FFmpegError as error:
        if first is None:
            raise ValueError(f"{name}: no frame can be decoded ({error.strerror})") from error
    if count == 0 or first is None:
        raise ValueError(f"{name}: has no frames")
    dated = dated and len(set(pts)) == len(pts)
    turned = _quarter_turns(first)
    known = {"mp4", "matroska"} & set(container.format.name.split(","))
    plain = dated and bool(known) and not (cut or turned or first.interlaced_frame)
    return _FrameTable(count, sorted(pts) if dated else [], sorted(keys), turned, plain)


def _quarter_turns(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) % 4


def _upright_pixels(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The pixels of a frame, uint8 [H, W, 3]."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


# --------------------------------------------------------------------------------------------------- reading


def decode_frames(
    source: VideoSource, indices: Sequence[int], name: str, backend: VideoBackend = "auto"
) -> NDArray[np.uint8]:
    """Decode some frames of a video.

    Args:
        source: the file's bytes, or its path.
        indices: numbers of the frames, from 0, in any order, also repeated.
        name: what to call the video in errors and warnings.
        backend: ``"auto"`` takes decord where it is installed and agrees with PyAV on the video, else PyAV.

    Returns:
        uint8 [n, H, W, 3], in the order of ``indices``.

    Raises:
        ValueError: the video cannot be opened, or does not have these frames.
        ImportError: a backend was asked for by name and is not installed.
    """
    wanted = [int(i) for i in indices]
    with open_video(source, name) as container:
        table = _scan_packets(container, name)
        if wanted and not 0 <= min(wanted) <= max(wanted) < table.count:
            bad = min(wanted) if min(wanted) < 0 else max(wanted)
            raise ValueError(f"{name}: has no frame {bad}, only 0 to {table.count - 1}")
        if not wanted or backend == "pyav":
            return _read_pyav(container, table, wanted, name)
        if backend == "torchcodec":
            return _read_torchcodec(source, wanted)
        if backend == "decord":
            return call_with_timeout(functools.partial(_read_decord, source, wanted, table.count), DECORD_TIMEOUT)
        if table.plain and importlib.util.find_spec("decord") is not None:
            try:
                return call_with_timeout(functools.partial(_read_decord, source, wanted, table.count), DECORD_TIMEOUT)
            except TimeoutError:
                warnings.warn(f"{name}: decord hung for {DECORD_TIMEOUT:g} s, reading with PyAV instead", stacklevel=2)
            except RuntimeError:
                pass  # decord cannot read it; PyAV has the last word, and the better error
        return _read_pyav(container, table, wanted, name)


def call_with_timeout(call: Callable[[], T], seconds: float) -> T:
    """Run ``call`` in a thread of its own; a thread that hangs is left behind (it dies with the process).

    Raises:
        TimeoutError: it took longer.
    """
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # noqa: BLE001  (handed over to the caller's thread)
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _read_decord(source: VideoSource, indices: list[int], count: int) -> NDArray[np.uint8]:
    import decord

    file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    try:
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != count:
            raise RuntimeError(f"decord counts {len(reader)} frames where {count} are shown")
        frames: NDArray[np.uint8] = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, IndexError) as error:
        raise RuntimeError(f"decord: {error}") from error
    return frames


def _read_torchcodec(source: VideoSource, indices: list[int]) -> NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder

    file = source if isinstance(source, bytes) else os.fspath(source)
    decoder = VideoDecoder(file, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
    frames: NDArray[np.uint8] = decoder.get_frames_at(indices).data.numpy()
    return frames


def _read_pyav(
    container: av.container.InputContainer, table: _FrameTable, indices: list[int], name: str
) -> NDArray[np.uint8]:
    """Read by seeking to the key frame before each wanted frame; from the start where time stamps are missing."""
    found: dict[int, NDArray[np.uint8]] = {}
    if table.pts:
        wanted = {table.pts[i]: i for i in indices}
        for start in sorted({_seek_position(table, t) for t in wanted}):
            _decode_wanted_frames(
                container, start, {t: i for t, i in wanted.items() if _seek_position(table, t) == start}, found
            )
    if not set(indices) <= set(found):
        container.seek(0, backward=True)
        for number, (_, frame) in zip(range(max(indices) + 1), iterate_frames(container, name), strict=False):
            if number in indices:
                found[number] = frame
    missing = sorted(set(indices) - set(found))
    if missing:
        raise ValueError(f"{name}: frame {missing[0]} cannot be decoded; the file is damaged or cut short")
    if not indices:
        stream = container.streams.video[0].codec_context
        return np.empty((0, stream.height, stream.width, 3), np.uint8)
    return np.stack([found[i] for i in indices])


def _seek_position(table: _FrameTable, pts: int) -> int:
    """Where to seek so that decoding reaches the frame of this time stamp with all that it refers to."""
    place = bisect.bisect_right(table.keys, pts, key=lambda k: k[0]) - 1
    return table.keys[place][1] if place >= 0 else table.pts[0]


def _decode_wanted_frames(
    container: av.container.InputContainer, start: int, wanted: dict[int, int], found: dict[int, NDArray[np.uint8]]
) -> None:
    """Decode from a key frame on and keep the frames of the wanted time stamps (pts to frame number)."""
    stream = container.streams.video[0]
    last = max(wanted)
    try:
        container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found[wanted[frame.pts]] = _upright_pixels(frame)
            if frame.pts is None or frame.pts >= last:
                return
    except av.FFmpegError:
        return  # what is missing is looked for again from the start, or reported there


def iterate_frames(
    container: av.container.InputContainer, name: str
) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
    """Decode an opened video from where it stands, frame by frame.

    Yields:
        (seconds since the stream's origin, or None where the container does not say; uint8 [H, W, 3]).

    Raises:
        ValueError: at the first frame that does not decode; what was yielded before it is sound.
    """
    stream = container.streams.video[0]
    try:
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise ValueError(f"{name}: frame {number} is damaged")
            yield frame.time, _upright_pixels(frame)
    except av.FFmpegError as error:
        raise ValueError(f"{name}: is damaged or cut short ({error.strerror})") from error
