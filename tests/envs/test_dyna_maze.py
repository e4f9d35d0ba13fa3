"""The maze of Dyna-Q: its walls, its shortest way, its picture."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from vwm.envs.dyna_maze import MAZE, DynaMazeEnv
from vwm.envs.env_ids import make_env


def explore(env: DynaMazeEnv) -> dict[int, int]:
    """Return the distance of every cell that can be reached, by its number."""
    start, _ = env.reset()
    distances, waiting = {start: 0}, [start]
    for cell in waiting:
        for action in range(env.action_space.n):
            env.position = divmod(cell, env.columns)
            following, reward, terminated, truncated, _ = env.step(action)
            assert reward == float(terminated) == float(following == 8) and not truncated
            if following not in distances:
                distances[following] = distances[cell] + 1
                waiting.append(following)
    return distances


def test_the_shortest_way_has_14_steps_and_no_move_enters_a_wall() -> None:
    distances = explore(DynaMazeEnv())
    assert distances[8] == 14
    free = {row * 9 + column for row, line in enumerate(MAZE) for column, cell in enumerate(line) if cell != "#"}
    assert set(distances) == free and len(free) == 47


def test_it_draws_itself_and_refuses_what_it_cannot_do() -> None:
    env = make_env("vwm/DynaMaze-v0", {"render_mode": "rgb_array"})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(0)
    assert env.reset(seed=3)[0] == 18
    before = env.render()
    env.step(1)
    assert before.shape == (96, 144, 3) and before.dtype == np.uint8
    changed = np.argwhere((before != env.render()).any(-1))
    assert changed.min(0).tolist() == [36, 4] and changed.max(0).tolist() == [59, 11]  # a cell down
    assert DynaMazeEnv().render() is None
    with pytest.raises(ValueError, match="render_mode='human' must be None or 'rgb_array'"):
        DynaMazeEnv("human")
