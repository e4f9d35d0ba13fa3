"""The lane-following policy: it detects the road in the frame and steers toward it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vwm.envs.lane_following import find_road_ahead, lane_following_action, read_speed, road_mask

GRASS, ROAD = (102, 230, 102), (104, 104, 104)


def road_frame(shift: int = 0, size: int = 64, bar: float = 0.0) -> NDArray[np.uint8]:
    """A straight road that is ``shift`` pixels to the right at the top, and an indicator bar that shows the speed."""
    frame = np.empty((size, size, 3), np.uint8)
    frame[:] = GRASS
    for row in range(size):
        center = size // 2 + round(shift * (1 - row / (0.73 * size)))
        frame[row, max(0, center - 7) : max(0, center + 7)] = ROAD
    indicator_top = int(0.875 * size)
    frame[indicator_top:] = 0
    bar_height = bar / 2000 * size
    frame[size - 2 - int(bar_height) : size - 2, 8:9] = 255
    frame[size - 2 - int(bar_height) : size - 2, 9:10] = round(255 * 0.6)
    return frame


def test_the_road_mask_contains_exactly_the_gray_pixels() -> None:
    frame = road_frame()
    frame[20:24, 30:34] = (255, 0, 0)
    frame[30, 0:4] = 255
    expected = (frame == ROAD).all(axis=-1)
    np.testing.assert_array_equal(road_mask(frame), expected)


@pytest.mark.parametrize("shift", [-20, 0, 20])
def test_steering_follows_the_direction_of_the_road(shift: int) -> None:
    point = find_road_ahead(road_frame(shift), 20)
    assert point is not None and 15 < point.ahead < 25
    steer, gas, brake = lane_following_action(road_frame(shift), target_speed=30)
    assert np.sign(round(point.right)) == np.sign(shift) == np.sign(round(10 * steer))
    assert gas > 0 and brake == 0


def test_off_the_road_it_steers_toward_the_nearest_road() -> None:
    frame = road_frame()
    frame[:56] = GRASS
    assert find_road_ahead(frame, 20) is None
    assert lane_following_action(frame, target_speed=30)[0] > 0  # no road in view: it turns around
    frame[50:54, 2:6] = ROAD
    point = find_road_ahead(frame, 20)
    assert point is not None and point.right < 0 and point.ahead < 0
    assert lane_following_action(frame, target_speed=30)[0] < -0.5


def test_speed_is_read_from_the_indicator_bar_and_gas_and_brake_regulate_it() -> None:
    for bar in (0.0, 62.5, 125.0):
        assert read_speed(road_frame(bar=bar)) == pytest.approx(bar, abs=2)
    fast, slow = (
        lane_following_action(road_frame(bar=62.5), target_speed=20),
        lane_following_action(road_frame(), target_speed=60),
    )
    assert fast[1] == 0 and fast[2] > 0.3
    assert slow[1] == 1 and slow[2] == 0
