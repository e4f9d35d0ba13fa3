"""A decoded frame of a video on its way into an episode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SourceFrame(NamedTuple):
    """A decoded frame of a video.

    Attributes:
        time: seconds since the first frame of its part.
        frame_index: index in the video.
        pixels: uint8 [h, w, 3].
        part: number of jumps in the time stamps before it.
        preview: uint8 [h', w', 3], what ``pixels`` shows, less reduced; where the clips are curated.
        shot: number of cuts before it.
    """

    time: float
    frame_index: int
    pixels: NDArray[np.uint8]
    part: int = 0
    preview: NDArray[np.uint8] | None = None
    shot: int = 0
