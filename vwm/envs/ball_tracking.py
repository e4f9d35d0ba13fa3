"""Ball tracking in images of Atari's Pong: finds the ball and the right paddle, and moves the paddle to the ball."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIELD_ROWS = (0.17, 0.92)
"""Top and bottom of the field between the white walls, as fractions of the height."""
BALL_COLUMNS, PADDLE_COLUMNS = (0.14, 0.87), (0.87, 0.92)
"""Columns between the paddles, and those of the right paddle, as fractions of the width."""
MIN_BLUE = 40
"""Above the brown ground's 17: only the white ball has that much blue between the paddles."""
DEAD_ZONE = 0.02
"""Distance at which the paddle stays where it is, as a fraction of the height."""


def find_ball(frame: NDArray[np.uint8]) -> float | None:
    """Return the row of the ball as a fraction of the height, or None where there is none: uint8 [H, W, 3]."""
    top, blue = _crop(frame[..., 2].astype(float), BALL_COLUMNS)
    rows = blue.max(axis=1)
    return None if rows.max() < MIN_BLUE else float(top + rows.argmax() + 0.5) / len(frame)


def find_paddle(frame: NDArray[np.uint8]) -> float | None:
    """Return the middle row of the right, green paddle as a fraction of the height, or None: uint8 [H, W, 3]."""
    top, greener = _crop(frame[..., 1].astype(float) - frame[..., 0], PADDLE_COLUMNS)
    weights = greener.clip(0).sum(axis=1)
    if weights.max() == 0:
        return None
    return float(top + 0.5 + (weights * np.arange(len(weights))).sum() / weights.sum()) / len(frame)


def paddle_direction(frame: NDArray[np.uint8], offset: float = 0.0) -> int:
    """Return where the paddle should go: -1 up, 1 down, 0 nowhere.

    Args:
        frame: uint8 [H, W, 3].
        offset: which point of the paddle meets the ball: distance below its middle, as a fraction of the height.
    """
    ball, paddle = find_ball(frame), find_paddle(frame)
    if ball is None or paddle is None:
        return 0
    distance = ball - (paddle + offset)
    return 0 if abs(distance) < DEAD_ZONE else int(np.sign(distance))


def _crop(image: NDArray[np.float64], columns: tuple[float, float]) -> tuple[int, NDArray[np.float64]]:
    """Cut columns of the field out of [H, W]; also return the first row."""
    height, width = image.shape
    top, bottom = (round(row * height) for row in FIELD_ROWS)
    left, right = (round(column * width) for column in columns)
    return top, image[top:bottom, left:right]
