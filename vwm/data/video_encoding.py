"""Encode frames as H.264 video or GIF, with key frames close together so that random clips decode quickly."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write


def encode_video(frames: NDArray[np.uint8], fps: float, crf: int = 16, gop: int = 12) -> bytes:
    """Encode frames as an H.264 mp4. Equal input gives equal bytes.

    Args:
        frames: uint8 [T, H, W, 3]; odd heights and widths keep their size (they are stored as 4:4:4).
        fps: frames per second.
        crf: x264's constant rate factor, from 0 (lossless luma) to 51 (worst quality).
        gop: frames from one key frame to the next. A small value makes random access fast.

    Raises:
        ValueError: ``frames`` has another dtype or shape, or ``fps`` is not positive.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with no empty side, got {frames.dtype} {frames.shape}")
    file = io.BytesIO()
    with FrameEncoder(file, frames.shape[1], frames.shape[2], fps, crf, gop) as encoder:
        for pixels in frames:
            encoder.write(pixels)
    return file.getvalue()


class FrameEncoder:
    """Context manager that encodes an H.264 mp4 frame by frame. Equal input gives equal bytes.

    Args:
        file: to write into, binary and seekable.
        height, width: of the frames, in pixels.
        fps, crf, gop: as for ``encode_video``.

    Raises:
        ValueError: ``fps`` is not positive.
    """

    def __init__(self, file: IO[bytes], height: int, width: int, fps: float, crf: int = 16, gop: int = 12) -> None:
        import av  # recorders of raw frames import this module, and need no encoder

        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        self.pixel_format = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        # One thread and no B-frames: the bytes are the same on every machine, and every decoder seeks correctly.
        options = {"crf": str(crf), "g": str(gop), "bf": "0", "preset": "fast", "threads": "1"}
        self._rate = Fraction(fps).limit_denominator(10_000)
        self._container = av.open(file, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.width = width
        self._stream.height = height
        self._stream.pix_fmt = self.pixel_format
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.time_base = 1 / self._rate
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 [H, W, 3]."""
        import av

        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts = self.count
        frame.time_base = 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def write_video(path: str | os.PathLike[str], frames: NDArray[np.uint8], fps: float) -> None:
    """Write frames, uint8 [T, H, W, 3], as ``.mp4`` or ``.gif`` depending on the suffix of ``path``, atomically.

    Raises:
        ValueError: ``path`` has another suffix.
    """
    path = Path(path)
    if path.suffix == ".mp4":
        data = encode_video(frames, fps)
    elif path.suffix == ".gif":
        data = _encode_gif(frames, fps)
    else:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without a suffix'}; name it .mp4 or .gif")
    with atomic_write(path) as file:
        file.write(data)


def _encode_gif(frames: NDArray[np.uint8], fps: float) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    first, *rest = [Image.fromarray(f) for f in np.asarray(frames)]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return file.getvalue()
