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


def lane_following_action(frame: NDArray[np.uint8], target_speed: float) -> NDArray[np.float64]:
    """Compute steering [-1, 1], gas and brake [0, 1] for a car that follows the road: float64 [3].

    It steers along the circle that leads from the car to a point of the road ahead, and slows down before bends.

    Args:
        frame: uint8 [H, W, 3].
        target_speed: speed to keep on a straight road.
    """
    speed = read_speed(frame)
    lookahead = 8 + 0.25 * speed
    near, far = find_road_ahead(frame, lookahead), find_road_ahead(frame, 2 * lookahead)
    if near is None or far is None:
        near = far = RoadPoint(8.0, 0.0)  # no road in sight: turn around slowly
    bend, next_bend = (math.atan2(point.right, point.ahead) for point in (near, far))
    curvature = 2 * math.sin(max(-1.5, min(1.5, bend))) / max(6.0, math.hypot(*near))
    steer = (
        1.3 * math.atan(WHEELBASE * curvature) / MAX_STEERING_ANGLE
    )  # a little more than the circle, since the tires slip
    curve_speed = target_speed * max(0.3, min(1.0, 1.25 - 1.2 * max(abs(bend), abs(next_bend))))
    return np.array([steer, 0.05 * (curve_speed - speed), min(0.6, 0.02 * (speed - curve_speed))]).clip((-1, 0, 0), 1)


def road_mask(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pixels are road, bool [H, W]."""
    pixels = frame.astype(np.int16)
    gray = np.ptp(pixels, axis=-1) < 24
    mask: NDArray[np.bool_] = gray & (np.abs(pixels.mean(axis=-1) - 105) < 20)
    mask[int(DASHBOARD_TOP * len(frame)) :] = False
    return mask


def find_road_ahead(frame: NDArray[np.uint8], distance: float) -> RoadPoint | None:
    """Follow the road from the car to its middle about ``distance`` ahead; off the road, return its nearest point.

    Args:
        frame: uint8 [H, W, 3].
        distance: in the environment's unit of length (a car is 4 long).

    Returns:
        The point, or None where there is no road in sight.
    """
    mask = road_mask(frame)
    height, width = mask.shape
    front_row = int((CAR_POSITION[0] - 0.05) * height)
    middle, point = CAR_POSITION[1] * width, None
    for row in range(front_row, -1, -1):
        runs = _true_runs(mask[row])
        if not len(runs):
            break
        gaps = np.maximum(np.maximum(runs[:, 0] - middle, middle - runs[:, 1]), 0)
        if gaps.min() > 0.06 * width:
            break
        nearest = runs[gaps.argmin()]
        middle = float(nearest.mean())
        point = _pixel_to_road_point(row, middle - 0.5, height, width)
        if point.ahead**2 + point.right**2 >= distance**2:
            break
    if point is not None:
        return point
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    points = [_pixel_to_road_point(int(r), float(c), height, width) for r, c in zip(rows, columns, strict=True)]
    return min(points, key=lambda point: point.right**2 + point.ahead**2)


def read_speed(frame: NDArray[np.uint8]) -> float:
    """Return the speed that the dashboard shows."""
    height, width, _ = frame.shape
    speed_bar = frame[
        int(DASHBOARD_TOP * height) :, int(SPEED_BAR_COLUMNS[0] * width) : math.ceil(SPEED_BAR_COLUMNS[1] * width)
    ]
    bar_height = speed_bar.min(axis=-1).sum() / 255 / ((SPEED_BAR_COLUMNS[1] - SPEED_BAR_COLUMNS[0]) * width)
    return float(bar_height / height * SPEED_PER_HEIGHT)


def _true_runs(row: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the start and end of each run of True, int64 [n, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return edges.reshape(-1, 2)


def _pixel_to_road_point(row: int, column: float, height: int, width: int) -> RoadPoint:
    right = ((column + 0.5) / width - CAR_POSITION[1]) * VIEW_SIZE[1]
    ahead = (CAR_POSITION[0] - (row + 0.5) / height) * VIEW_SIZE[0]
    return RoadPoint(right, ahead)
