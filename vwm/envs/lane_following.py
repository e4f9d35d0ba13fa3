"""Lane following from images of a top view: finds the road and the speed of the car in the frame.

Written for Gymnasium's CarRacing, whose car is at the same position in every frame and points up. Gray is road, and a
white bar at the bottom shows the speed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CAR_POSITION = (0.73, 0.5)
"""Position of the car, as fractions of the frame's height and width."""
DASHBOARD_TOP = 0.875
"""Top of the black dashboard, as a fraction of the height."""
VIEW_SIZE = (49.4, 61.7)
"""Height and width of the view in the environment's unit of length; frames are resized to squares."""
SPEED_BAR_COLUMNS = (5 / 40, 6 / 40)
"""Columns of the speed bar, as fractions of the width."""
SPEED_PER_HEIGHT = 2000.0
"""Speed at which the bar would be as high as the frame."""


WHEELBASE, MAX_STEERING_ANGLE = 3.24, 0.4
"""Distance between the car's axles, and angle of its front wheels at full steering."""


class RoadPoint(NamedTuple):
    """A point of the road: how far to the right of the car, and how far ahead of it (negative: behind)."""

    right: float
    ahead: float


def lane_following_action(frame: NDArray[np.uint8], pace: float) -> NDArray[np.float64]:
    """Compute steering [-1, 1], gas and brake [0, 1] for a car that follows the road: float64 [3].

    It steers along the circle that leads from the car to a point of the road ahead, and slows down before bends.

    Args:
        frame: uint8 [H, W, 3].
        pace: speed to keep on a straight road.
    """
    now = read_speed(frame)
    reach = 8 + 0.25 * now
    near, far = find_road_ahead(frame, reach), find_road_ahead(frame, 2 * reach)
    if near is None or far is None:
        near = far = RoadPoint(8.0, 0.0)  # lost: turn round, slowly
    bend, next_bend = (math.atan2(point.right, point.ahead) for point in (near, far))
    curvature = 2 * math.sin(max(-1.5, min(1.5, bend))) / max(6.0, math.hypot(*near))
    steer = (
        1.3 * math.atan(WHEELBASE * curvature) / MAX_STEERING_ANGLE
    )  # a little more than the circle, since the tires slip
    wanted = pace * max(0.3, min(1.0, 1.25 - 1.2 * max(abs(bend), abs(next_bend))))
    return np.array([steer, 0.05 * (wanted - now), min(0.6, 0.02 * (now - wanted))]).clip((-1, 0, 0), 1)


def road_mask(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels are road, bool [H, W]."""
    pixels = frame.astype(np.int16)
    gray = np.ptp(pixels, axis=-1) < 24
    mask: NDArray[np.bool_] = gray & (np.abs(pixels.mean(axis=-1) - 105) < 20)
    mask[int(DASHBOARD_TOP * len(frame)) :] = False
    return mask


def find_road_ahead(frame: NDArray[np.uint8], distance: float) -> RoadPoint | None:
    """The middle of the road about ``distance`` ahead, followed from the car on; off the road, its nearest point.

    Args:
        frame: uint8 [H, W, 3].
        distance: in the game's unit of length (a car is 4 long).

    Returns:
        The point, or None where there is no road in sight.
    """
    mask = road_mask(frame)
    height, width = mask.shape
    bonnet = int((CAR_POSITION[0] - 0.05) * height)
    middle, found = CAR_POSITION[1] * width, None
    for row in range(bonnet, -1, -1):
        runs = _true_runs(mask[row])
        if not len(runs):
            break
        gaps = np.maximum(np.maximum(runs[:, 0] - middle, middle - runs[:, 1]), 0)
        if gaps.min() > 0.06 * width:
            break
        nearest = runs[gaps.argmin()]
        middle = float(nearest.mean())
        found = _pixel_to_road_point(row, middle - 0.5, height, width)
        if found.ahead**2 + found.right**2 >= distance**2:
            break
    if found is not None:
        return found
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    places = [_pixel_to_road_point(int(r), float(c), height, width) for r, c in zip(rows, columns, strict=True)]
    return min(places, key=lambda place: place.right**2 + place.ahead**2)


def read_speed(frame: NDArray[np.uint8]) -> float:
    """The speed that the instruments show."""
    height, width, _ = frame.shape
    board = frame[
        int(DASHBOARD_TOP * height) :, int(SPEED_BAR_COLUMNS[0] * width) : math.ceil(SPEED_BAR_COLUMNS[1] * width)
    ]
    lit = board.min(axis=-1).sum() / 255 / ((SPEED_BAR_COLUMNS[1] - SPEED_BAR_COLUMNS[0]) * width)
    return float(lit / height * SPEED_PER_HEIGHT)


def _true_runs(row: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each stretch of True begins and ends, int64 [n, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return edges.reshape(-1, 2)


def _pixel_to_road_point(row: int, column: float, height: int, width: int) -> RoadPoint:
    right = ((column + 0.5) / width - CAR_POSITION[1]) * VIEW_SIZE[1]
    ahead = (CAR_POSITION[0] - (row + 0.5) / height) * VIEW_SIZE[0]
    return RoadPoint(right, ahead)
