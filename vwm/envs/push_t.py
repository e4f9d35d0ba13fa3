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
from vwm.envs.push_t_physics import AGENT_RADIUS, ARENA_SIZE, PushTPhysics, draw_push_t
from vwm.envs.render_mode import check_render_mode

PUSH_T_ID = "vwm/PushT-v0"
POSITION_TOLERANCE = 20.0
"""Largest distance at the goal: the Euclidean norm over x and y of disc and block together."""
ANGLE_TOLERANCE = np.pi / 9
"""Largest difference of the block's angle at the goal, in rad."""


class PushTEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A disc that pushes a block on a plane, with a goal for both.

    Actions in [-1, 1]^2 (right, down) place the target of the disc's controller up to 100 units away for a tenth of a
    second. Observations are states, float32 [7], see ``state_names``; ``render`` draws them. The reward is 1 at the
    goal and 0 elsewhere (see ``push_t_errors``).

    ``reset(options=...)`` takes ``state`` and ``goal``, float [7] each; what it omits is drawn at random.

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
    """Names of the values of ``state``."""

    def __init__(self, image_size: int = 64, terminate: bool = False, render_mode: str | None = None) -> None:
        import pymunk  # noqa: F401 (raises ImportError here, and not in the first reset)

        check_positive(image_size=image_size)
        check_render_mode(render_mode)
        self.image_size = image_size
        self.terminate = terminate
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-4.0 * ARENA_SIZE, 4.0 * ARENA_SIZE, (7,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.physics: PushTPhysics | None = None
        self.goal = np.full(7, np.nan)

    @property
    def state(self) -> NDArray[np.float32]:
        """Return the state, float32 [7], see ``state_names``."""
        return self._current_physics().state.astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; every reset draws its start and its goal, also where options replace them."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state", "goal"}:
            raise ValueError(f"options {sorted(unknown)} are not known; there are state and goal")
        start, goal = self._draw_state(), self._draw_state()
        self.set_state(options.get("state", start))
        self.goal = _check_state("goal", options.get("goal", goal))
        return self.state, {"goal": self.goal.copy()}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Hold an action for a tenth of a second; actions are clipped to [-1, 1]."""
        self._current_physics().step(np.clip(np.asarray(action, np.float64), -1, 1))
        state = self.state
        position, angle = push_t_errors(state, self.goal)
        at_goal = bool(position < POSITION_TOLERANCE and angle < ANGLE_TOLERANCE)
        return state, float(at_goal), self.terminate and at_goal, False, {"goal": self.goal.copy()}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the image; None without a render mode."""
        return None if self.render_mode is None else draw_push_t(self._current_physics(), self.image_size)

    def set_state(self, state: ArrayLike) -> None:
        """Bring disc and block to a state, float [7]; what follows depends on it alone."""
        self.physics = PushTPhysics.at(_check_state("state", state))

    def _current_physics(self) -> PushTPhysics:
        if self.physics is None:
            raise ResetNeeded("call reset() first")
        return self.physics

    def _draw_state(self) -> NDArray[np.float64]:
        """Draw a block, and a disc that does not touch it, both at rest."""
        block = [*self.np_random.uniform(100, ARENA_SIZE - 112, 2), self.np_random.uniform(0, 2 * np.pi)]
        physics = PushTPhysics.at(np.array([0, 0, *block, 0, 0]))
        while True:
            agent = self.np_random.uniform(50, ARENA_SIZE - 62, 2)
            if physics.gap(agent) > AGENT_RADIUS:
                return np.array([*agent, *block, 0, 0])


def push_t_errors(state: ArrayLike, goal: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far states [..., 7] are from goals [..., 7].

    Returns:
        The Euclidean distance over x and y of disc and block together, and the angle between the blocks, 0..pi.
    """
    difference = np.asarray(state, np.float64) - np.asarray(goal, np.float64)
    angle = np.abs(difference[..., 4]) % (2 * np.pi)
    return np.linalg.norm(difference[..., :4], axis=-1), np.minimum(angle, 2 * np.pi - angle)


def _check_state(name: str, given: ArrayLike) -> NDArray[np.float64]:
    state = np.array(given, np.float64)
    if state.shape != (7,) or not np.isfinite(state).all():
        names = ", ".join(PushTEnv.state_names)
        raise ValueError(f"options[{name!r}] must be 7 finite numbers ({names}), got {given!r}")
    return state


if PUSH_T_ID not in gymnasium.registry:
    gymnasium.register(PUSH_T_ID, entry_point=f"{__name__}:PushTEnv", max_episode_steps=100)
