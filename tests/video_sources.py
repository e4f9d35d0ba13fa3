"""Short videos of ffmpeg's sources, for tests of measures and filters."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def source(description: str, count: int = 25) -> Frames:
    """The first frames of one of ffmpeg's sources, 320 x 180 at 24 a second."""
    with av.open(f"{description}s=320x180:r=24", format="lavfi") as container:
        frames = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        return np.stack([frame for frame, _ in zip(frames, range(count), strict=False)])


def compressed(frames: Frames, quality: int) -> Frames:
    """The frames after compression by x264 at a constant rate factor."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(24), options={"crf": str(quality), "preset": "ultrafast"}
        )
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
