"""The ball-tracking policy of Pong: it sees the ball and the paddle where the game has them, and meets the ball."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.ball_tracking import find_ball, find_paddle, paddle_direction
from vwm.envs.behavior_policies import BallTrackingPolicy
from vwm.envs.wrapped_env import WrappedEnv

GROUND, BALL, PADDLE, WALL = (144, 72, 17), (236, 236, 236), (92, 186, 92), (236, 236, 236)


def pong_frame(ball: int | None, paddle: int) -> NDArray[np.uint8]:
    """The field with its walls, the ball in a row, and the paddle of five rows around another row."""
    frame = np.empty((64, 64, 3), np.uint8)
    frame[:] = GROUND
    frame[8:10] = frame[59:] = WALL
    frame[paddle - 2 : paddle + 3, 56:58] = PADDLE
    if ball is not None:
        frame[ball, 30] = BALL
    return frame


@pytest.mark.parametrize(
    ("ball", "offset", "direction"), [(20, 0, -1), (40, 0, 1), (30, 0, 0), (30, 0.1, -1), (None, 0, 0)]
)
def test_the_paddle_goes_to_the_ball(ball: int | None, offset: float, direction: int) -> None:
    assert paddle_direction(pong_frame(ball, paddle=30), offset) == direction


def test_the_walls_are_no_ball_and_a_field_without_paddle_is_no_error() -> None:
    frame = pong_frame(None, 30)
    assert find_ball(frame) is None
    frame[25:35, 56:58] = GROUND
    assert find_paddle(frame) is None and paddle_direction(frame) == 0


def test_the_policy_follows_the_ball_in_most_segments_deterministically_and_refuses_other_games() -> None:
    names = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    actions = EnvActionSpec(6, np.zeros(0, np.float32), np.zeros(0, np.float32), names)
    frames, first = np.stack([pong_frame(20, 40)] * 3), np.zeros(3, bool)
    runs = []
    for _ in range(2):
        policy = BallTrackingPolicy(actions, 3, np.random.default_rng(7))
        runs.append(np.stack([policy.act(first, frames) for _ in range(1000)]))
    np.testing.assert_array_equal(*runs)
    assert 0.65 < (runs[0] == names.index("RIGHT")).mean() < 0.95 and set(runs[0].ravel()) == set(range(6))
    with pytest.raises(ValueError, match="moves a paddle by NOOP, RIGHT, LEFT"):
        BallTrackingPolicy(EnvActionSpec(2, np.zeros(0), np.zeros(0), ("left", "right")), 1, np.random.default_rng(0))


def test_it_returns_the_balls_of_the_real_game() -> None:
    env = WrappedEnv("ALE/Pong-v5", {"repeat_action_probability": 0.0}, 64, action_repeat=4)
    policy = BallTrackingPolicy(env.actions, 1, np.random.default_rng(0))
    policy.tracking_rate = 1.0
    env.reset(seed=0)
    rows, columns = [], []
    for step in range(400):
        frame, ram = env.observe(), env.env.unwrapped.ale.getRAM()  # type: ignore[attr-defined]
        ball, paddle = find_ball(frame), find_paddle(frame)
        if ball is not None and paddle is not None and step > 80:  # before, the game counts down
            rows.append((ball, int(ram[54]), paddle, int(ram[51])))
            columns.append(int(ram[49]))
        env.step(policy.act(np.array([step == 0]), frame[None])[0])
    seen = np.corrcoef(np.array(rows).T)
    assert seen[0, 1] > 0.99 and seen[2, 3] > 0.99
    moves = np.diff(columns)
    moves = moves[moves != 0]
    returns = (moves[:-1] > 0) & (moves[1:] < 0) & (moves[1:] > -20)  # a ball that is served again jumps
    assert returns.sum() >= 4
