"""Measures of a clip: black and frozen frames, motion, and text laid over the picture.

They are computed from small previews of the frames as the clip is decoded, so that a long clip needs no more memory
than a short one. The preview shows what the shard will hold, before it is made as small as the shard's frames: a line
of text can be read in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREVIEW_SIDE = 320
"""Longest side of a preview, in pixels."""
BLACK_LEVEL = 25
"""Mean level of red, green or blue up to which a block of pixels is black, of 255: a tenth."""
SMALL_BLOCK = 4
"""Side of the blocks, in pixels, that are compared: noise of compression averages out, a ball in a game does not."""
FROZEN_DIFFERENCE = 1.2
"""Mean absolute difference of these blocks in red, green and blue, of 255, below which two frames show the same. Each
frame is compared with the last one that showed something new, so that a slow change adds up."""
FROZEN_PEAK = 16
"""Difference of one block in one color at which two frames do not show the same."""
BLOCK = 8
CHANGE = 10
"""Difference of luma, of 255, that noise of compression does not reach."""
MOTION_EVERY = 4
"""Frames from one measurement of optical flow to the next."""
TEXT_EVERY = 8
"""Frames from one search for text to the next."""
TEXT_FRAMES = 3
"""Searches in which an edge must be found in the same place: text lies still while the picture under it moves."""
TEXT_CONTRAST = 80
"""Least difference of luma, of 255, across the edge of a letter."""


class ClipMeasures:
    """Accumulates the measures of one clip.

    Args:
        names: which measures, of ``black``, ``frozen``, ``motion`` and ``text``.
        rate: frames a second.

    Raises:
        ImportError: motion and text need OpenCV, which is not installed.
    """

    def __init__(self, names: Sequence[str], rate: float) -> None:
        self._names = frozenset(names)
        self._rate = rate
        self._values: dict[str, list[float]] = {name: [] for name in sorted(names)}
        self._previous: NDArray[np.uint8] | None = None
        self._frozen_at: NDArray[np.float64] | None = None
        self._edges: list[NDArray[np.uint8]] = []
        self._count = 0
        self._flow: Any = None
        if {"motion", "text"} & self._names:
            cv2 = import_opencv()
            cv2.setNumThreads(1)  # workers decode side by side
            self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def add(self, preview: NDArray[np.uint8]) -> None:
        """Take the preview of the next frame, uint8 [h, w, 3]."""
        previous, number, luma = self._previous, self._count, luma_of(preview)
        if {"black", "frozen"} & self._names:
            blocks = np.stack([block_means(preview[..., color], SMALL_BLOCK) for color in range(3)])
            if "black" in self._names:
                self._values["black"].append(float(blocks.max() <= BLACK_LEVEL))
            if "frozen" in self._names:
                self._values["frozen"] += self._compare_with_frozen(blocks)
        if previous is not None and "motion" in self._names and number % MOTION_EVERY == 1:
            self._values["motion"].append(mean_flow(self._flow, previous, luma) * self._rate)
        if "text" in self._names and number % TEXT_EVERY == 0:
            self._edges = [*self._edges, text_edges(luma)][-TEXT_FRAMES:]
            self._values["text"].append(text_share(luma, np.minimum.reduce(self._edges)))
        self._previous, self._count = luma, number + 1

    def _compare_with_frozen(self, blocks: NDArray[np.float64]) -> list[float]:
        """Compare with the last frame that showed something new."""
        if self._frozen_at is None:
            self._frozen_at = blocks
            return []
        difference = np.abs(blocks - self._frozen_at)
        is_same = bool(difference.mean() < FROZEN_DIFFERENCE and difference.max() < FROZEN_PEAK)
        if not is_same:
            self._frozen_at = blocks
        return [float(is_same)]

    def scores(self) -> dict[str, float]:
        """Return the measures of the frames so far, rounded to 6 digits; none of a measure that saw too few frames."""
        return {name: round(float(np.mean(values)), 6) for name, values in self._values.items() if values}


def measure_frames(frames: Iterable[NDArray[np.uint8]], names: Sequence[str], rate: float = 30.0) -> dict[str, float]:
    """Return the measures of a clip whose frames, uint8 [H, W, 3], are given at once."""
    measures = ClipMeasures(names, rate)
    for frame in frames:
        measures.add(make_preview(frame))
    return measures.scores()


def make_preview(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame, uint8 [H, W, 3], with its longest side reduced to ``PREVIEW_SIDE`` pixels; none is enlarged."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = PREVIEW_SIDE / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def preview_size(frame: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    """Return height and width of a preview of frames that are cropped to the shape height x width.

    Args:
        frame: height and width of the source frame.
        height, width: of the frames in the shard.
    """
    scale = max(height / frame[0], width / frame[1])  # of the source to the shard
    factor = min(PREVIEW_SIDE / max(height, width), 1 / scale)
    return max(1, round(height * factor)), max(1, round(width * factor))


def luma_of(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma (ITU-R BT.601) of a frame, uint8 [h, w, 3] to [h, w]."""
    from PIL import Image

    return np.asarray(Image.fromarray(frame).convert("L"))


def mean_flow(flow: Any, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the mean length of the optical flow between two lumas, in widths of the frame.

    Flow counts only in blocks in which some pixel changes: where nothing does, it would be that of the noise.
    """
    if min(one.shape) < 2 * BLOCK:  # the flow is of patches of 8 pixels
        return 0.0
    lengths = np.linalg.norm(flow.calc(one, other, None), axis=-1)
    moves = _blocks(np.abs(other.astype(np.int16) - one), BLOCK).max(axis=(1, 3)) >= CHANGE
    return float((block_means(lengths, BLOCK) * moves).mean() / one.shape[1])


def block_means(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Return the means of square blocks, [h, w] to [h // side, w // side]; of a smaller picture its mean, [1, 1]."""
    if min(values.shape) < side:
        return values.mean(keepdims=True, dtype=np.float64)
    return _blocks(values, side).mean(axis=(1, 3), dtype=np.float64)


def _blocks(values: NDArray[Any], side: int) -> NDArray[Any]:
    """Cut [h, w] into blocks, [h // side, side, w // side, side]."""
    height, width = (length // side for length in values.shape)
    return values[: height * side, : width * side].reshape(height, side, width, side)


def text_edges(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return where a picture, uint8 [h, w], has edges as strong as those of letters laid over it: 0 or 1, uint8."""
    cv2 = import_opencv()
    gradient = cv2.morphologyEx(luma, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges: NDArray[np.uint8] = (gradient >= TEXT_CONTRAST).astype(np.uint8)
    return edges


def text_share(luma: NDArray[np.uint8], edges: NDArray[np.uint8]) -> float:
    """Return the share of a picture's area that is covered by marks shaped like lines of text.

    A line of text is a flat, dense cluster of strong edges: strokes of one height, side by side, of high contrast.
    Edges are joined along the line, and the joined marks are kept that are wider than high, low, filled with edges, and
    crossed by many strokes. It is a measure of subtitles, captions and watermarks in Latin or similar scripts. Signs in
    a scene that stands still count as well; single letters, and text over a background of its contrast, do not.

    Args:
        luma: uint8 [h, w].
        edges: where it has edges that last, 0 or 1, uint8 [h, w].
    """
    cv2 = import_opencv()
    height, width = luma.shape
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((1, max(3, width // 40)), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=4)
    area = 0
    for x, y, w, h, _ in stats[1:count]:
        is_line = 5 <= h <= height * 0.15 and 2.5 * h <= w < width
        if is_line and _has_strokes(luma[y : y + h, x : x + w], edges[y : y + h, x : x + w]):
            area += int(w) * int(h)
    return area / (height * width)


def _has_strokes(luma: NDArray[np.uint8], edges: NDArray[np.uint8]) -> bool:
    """Whether a mark, uint8 [h, w], is filled with edges and crossed by at least one stroke for each of its heights."""
    height, width = luma.shape
    middle = (int(luma.min()) + int(luma.max())) / 2
    crossings = np.abs(np.diff((luma >= middle).astype(np.int8), axis=1)).sum(axis=1)
    strokes = np.sort(crossings)[-max(1, height // 2) :].mean() / 2
    return bool(edges.mean() >= 0.4 and strokes >= 0.5 * width / height + 1)


def import_opencv() -> Any:
    """Import OpenCV.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("shots, motion and text need OpenCV: pip install 'vwm[curate]'") from error
    return cv2
