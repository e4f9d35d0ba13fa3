"""Environments with goals: resets draw alike for all options, unknown options are named, and actions are clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vwm.envs.goal_env import StateGoalEnv


class PointEnv(StateGoalEnv):
    """A point in the plane that actions move; the goal is its x."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's declaration)
    state_names = ("x", "y")
    goal_size = 1

    @property
    def state(self) -> NDArray[np.float32]:
        return self.at.astype(np.float32)

    def set_state(self, state: Any) -> None:
        self.at = self.check_state(state)

    def draw_state(self) -> NDArray[np.float64]:
        return self.np_random.uniform(5, 9, 2)

    def move(self, action: NDArray[np.float64]) -> None:
        self.at = self.at + action

    def at_goal(self) -> bool:
        return bool(self.at[0] == self.goal[0])

    def draw(self) -> NDArray[np.uint8]:
        return np.full((1, 1, 3), int(self.at[0]), np.uint8)


@pytest.mark.parametrize("options", [{"state": [0, 0]}, {"goal": [3]}, {"state": [0, 0], "goal": [3]}])
def test_options_replace_what_they_name_and_no_later_draw(options: dict[str, list[float]]) -> None:
    env, other = PointEnv(), PointEnv()
    state, info = env.reset(seed=0)
    given_state, given_info = other.reset(seed=0, options=options)
    assert given_state.tolist() == options.get("state", state.tolist())
    assert given_info["goal"].tolist() == options.get("goal", info["goal"].tolist())
    assert (env.reset()[0] == other.reset()[0]).all() and (env.goal == other.goal).all()


def test_actions_are_clipped_and_the_goal_gives_the_reward_and_may_end_the_episode() -> None:
    for terminate in (False, True):
        env = PointEnv(terminate, "rgb_array")
        env.reset(seed=0, options={"state": [7, 0], "goal": [9]})
        state, *rest = env.step(np.array([5, -0.5], np.float32))
        assert state.tolist() == [8, -0.5] and rest[:3] == [0, False, False]
        assert env.step(np.array([1, 0], np.float32))[1:4] == (1, terminate, False)
        image = env.render()
        assert image is not None and image.max() == 9
    assert PointEnv().render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": [0, 0]}, r"options \['begin'\] are not known; there are state and goal"),
        ({"state": [0]}, r"options\['state'\] must be 2 finite numbers \(x, y\), got \[0\]"),
        ({"goal": [np.nan]}, r"options\['goal'\] must be 1 finite numbers \(x\)"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointEnv().reset(seed=0, options=options)
