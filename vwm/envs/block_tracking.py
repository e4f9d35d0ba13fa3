"""Where disc and block are in images of Push-T, by their colors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AGENT_COLOR, BLOCK_COLOR = (65, 105, 225), (119, 136, 153)
"""Royal blue and light slate gray, as ``draw_push_t`` draws disc and block."""
COLOR_TOLERANCE = 40
"""Largest distance of a pixel's color; edges, which are mixtures with white, are farther."""


def find_color(frame: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """Return the mean position (x, y) of a color as fractions of the image, or None where it is not shown.

    Args:
        frame: uint8 [H, W, 3].
        color: red, green and blue.
    """
    rows, columns = np.nonzero(np.linalg.norm(frame.astype(np.float64) - color, axis=-1) < COLOR_TOLERANCE)
    if not len(rows):
        return None
    return np.array([(columns.mean() + 0.5) / frame.shape[1], (rows.mean() + 0.5) / frame.shape[0]])
