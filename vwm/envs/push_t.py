"""Push-T as a Gymnasium environment with goals: bring a disc and a T-shaped block to where a goal has them.

Importing this module registers ``vwm/PushT-v0``. It needs pymunk (the extra ``pusht``) alone: the environment of the
registry, gym-pusht, brings pygame, Shapely and OpenCV (0.25 GB), takes absolute targets, and has one fixed goal.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from vwm.core.checks import check_positive
from vwm.envs.goal_env import StateGoalEnv
from vwm.envs.push_t_physics import AGENT_RADIUS, ARENA_SIZE, PushTPhysics, draw_push_t

PUSH_T_ID = "vwm/PushT-v0"
POSITION_TOLERANCE = 20.0
"""Largest distance at the goal: the Euclidean norm over x and y of disc and block together."""
ANGLE_TOLERANCE = np.pi / 9
"""Largest difference of the block's angle at the goal, in rad."""


class PushTEnv(StateGoalEnv):
    """A disc that pushes a block on a plane, with a goal for both.

    Actions in [-1, 1]^2 (right, down) place the target of the disc's controller up to 100 units away for a tenth of a
    second. Observations are states, float32 [7], see ``state_names``; ``render`` draws them. Goals are states; see
    ``push_t_errors`` for when one is reached, and ``StateGoalEnv`` for rewards and the options of ``reset``.

    Args:
        image_size: side of what ``render`` draws, in pixels.
        terminate: end the episode at the goal.
        render_mode: ``"rgb_array"`` lets ``render`` return the image.

    Raises:
        ImportError: pymunk is not installed.
        ValueError: ``image_size`` is below 1, or another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's declaration)
    state_names = ("agent_x", "agent_y", "block_x", "block_y", "block_angle", "agent_vx", "agent_vy")
    goal_size = 7

    def __init__(self, image_size: int = 64, terminate: bool = False, render_mode: str | None = None) -> None:
        import pymunk  # noqa: F401 (raises ImportError here, and not in the first reset)

        check_positive(image_size=image_size)
        super().__init__(terminate, render_mode)
        self.image_size = image_size
        self.observation_space = spaces.Box(-4.0 * ARENA_SIZE, 4.0 * ARENA_SIZE, (7,), np.float32)
        self.physics: PushTPhysics | None = None

    @property
    def state(self) -> NDArray[np.float32]:
        """Return the state, float32 [7], see ``state_names``."""
        return self._current_physics().state.astype(np.float32)

    def set_state(self, state: ArrayLike) -> None:
        """Bring disc and block to a state, float [7]; see ``StateGoalEnv.set_state``."""
        self.physics = PushTPhysics.at(self.check_state(state))

    def draw_state(self) -> NDArray[np.float64]:
        """Draw a block, and a disc that does not touch it, both at rest."""
        block = [*self.np_random.uniform(100, ARENA_SIZE - 112, 2), self.np_random.uniform(0, 2 * np.pi)]
        physics = PushTPhysics.at(np.array([0, 0, *block, 0, 0]))
        while True:
            agent = self.np_random.uniform(50, ARENA_SIZE - 62, 2)
            if physics.gap(agent) > AGENT_RADIUS:
                return np.array([*agent, *block, 0, 0])

    def move(self, action: NDArray[np.float64]) -> None:
        """Hold an action for a tenth of a second."""
        self._current_physics().step(action)

    def at_goal(self) -> bool:
        """Return whether both errors are below their tolerances."""
        position, angle = push_t_errors(self.state, self.goal)
        return bool(position < POSITION_TOLERANCE and angle < ANGLE_TOLERANCE)

    def draw(self) -> NDArray[np.uint8]:
        """Draw disc, block and walls, uint8 [image_size, image_size, 3]."""
        return draw_push_t(self._current_physics(), self.image_size)

    def _current_physics(self) -> PushTPhysics:
        if self.physics is None:
            raise ResetNeeded("call reset() first")
        return self.physics


def push_t_errors(state: ArrayLike, goal: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far states [..., 7] are from goals [..., 7].

    Returns:
        The Euclidean distance over x and y of disc and block together, and the angle between the blocks, 0..pi.
    """
    difference = np.asarray(state, np.float64) - np.asarray(goal, np.float64)
    angle = np.abs(difference[..., 4]) % (2 * np.pi)
    return np.linalg.norm(difference[..., :4], axis=-1), np.minimum(angle, 2 * np.pi - angle)


if PUSH_T_ID not in gymnasium.registry:
    gymnasium.register(PUSH_T_ID, entry_point=f"{__name__}:PushTEnv", max_episode_steps=100)
