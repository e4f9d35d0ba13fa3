"""The maze of Dyna-Q: a small grid with walls, a start and a goal (Sutton and Barto, 2018, example 8.1).

Importing this module makes ``vwm/DynaMaze-v0`` known to Gymnasium. Rows go down and columns go right.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from vwm.envs.render_mode import check_render_mode

DYNA_MAZE_ID = "vwm/DynaMaze-v0"

MAZE = (
    ".......#G",
    "..#....#.",
    "S.#....#.",
    "..#......",
    ".....#...",
    ".........",
)
"""Walls (#), start (S) and goal (G)."""
MAZE_MOVES = ((-1, 0), (1, 0), (0, 1), (0, -1))
"""Row and column of the actions up, down, right and left."""
CELL_PIXELS = 16
"""Side of a cell in the image."""
CELL_COLORS = {".": (225, 225, 225), "#": (70, 70, 70), "S": (200, 215, 240), "G": (120, 200, 120)}
"""Colors of the cells."""
WALKER_COLOR = (200, 70, 50)
"""Color of the agent."""


class DynaMazeEnv(gymnasium.Env[Any, Any]):
    """Walk from the start to the goal: the reward is 1 at the goal, where the episode terminates, and 0 elsewhere.

    Observations are the number of the cell, row by row, in 0..53. An action moves to the next cell, and leaves the
    agent where it is if a wall or the border is there. Nothing is random. Episodes have no limit; the shortest way has
    14 steps.

    Args:
        render_mode: ``"rgb_array"`` lets ``render`` return an image.

    Raises:
        ValueError: another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.rows, self.columns = len(MAZE), len(MAZE[0])
        self.observation_space = spaces.Discrete(self.rows * self.columns)
        self.action_space = spaces.Discrete(len(MAZE_MOVES))
        self.position: tuple[int, int] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Go to the start."""
        super().reset(seed=seed)
        self.position = next((row, line.index("S")) for row, line in enumerate(MAZE) if "S" in line)
        return self._cell(), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move: cell, reward, terminated, truncated, info."""
        if self.position is None:
            raise ResetNeeded("call reset() first")
        row, column = (at + move for at, move in zip(self.position, MAZE_MOVES[int(action)], strict=True))
        if 0 <= row < self.rows and 0 <= column < self.columns and MAZE[row][column] != "#":
            self.position = (row, column)
        at_goal = MAZE[self.position[0]][self.position[1]] == "G"
        return self._cell(), float(at_goal), at_goal, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image, uint8 [96, 144, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        cells = np.array([[CELL_COLORS[cell] for cell in line] for line in MAZE], np.uint8)
        image = cells.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
        if self.position is not None:
            top, left = (at * CELL_PIXELS + CELL_PIXELS // 4 for at in self.position)
            image[top : top + CELL_PIXELS // 2, left : left + CELL_PIXELS // 2] = WALKER_COLOR
        return image

    def _cell(self) -> int:
        assert self.position is not None
        return self.position[0] * self.columns + self.position[1]


if DYNA_MAZE_ID not in gymnasium.registry:
    gymnasium.register(DYNA_MAZE_ID, entry_point=f"{__name__}:DynaMazeEnv")
