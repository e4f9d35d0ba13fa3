"""The DeepMind Control Suite's reacher with goals of joint angles, as a Gymnasium environment.

Importing this module registers ``vwm/Reacher-v0``. Its model is that of dm_control (the extra ``dmc``); a step is one
of the physics, 0.02 s, and the target of the suite's own task is invisible.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from vwm.core.checks import check_positive
from vwm.envs.goal_env import StateGoalEnv
from vwm.envs.opengl import prepare_for_opengl

REACHER_ID = "vwm/Reacher-v0"
ANGLE_TOLERANCE = 0.05
"""Largest difference of each joint at the goal, in rad."""
WRIST_LIMIT = np.deg2rad(160)
"""Largest angle of the second joint at a start, in rad, which is also the model's limit."""


class ReacherEnv(StateGoalEnv):
    """A planar arm of two joints, with a goal for their angles; no angle is wrapped.

    Actions in [-1, 1]^2 are torques of the joints as shares of the largest. Observations are states, float32 [4], see
    ``state_names``; ``render`` shows the arm from above. Goals are angles, float [2], and reached where each joint is
    within 0.05 rad; see ``StateGoalEnv`` for rewards and the options of ``reset``.

    Args:
        image_size: side of what ``render`` shows, in pixels.
        terminate: end the episode at the goal.
        render_mode: ``"rgb_array"`` lets ``render`` return the image. It needs OpenGL; without a screen, EGL or OSMesa
            (the environment variable ``MUJOCO_GL`` chooses).

    Raises:
        ImportError: dm_control is not installed.
        ValueError: ``image_size`` is below 1, or another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (Gymnasium's declaration)
    state_names = ("shoulder", "wrist", "shoulder_velocity", "wrist_velocity")
    goal_size = 2

    def __init__(self, image_size: int = 64, terminate: bool = False, render_mode: str | None = None) -> None:
        prepare_for_opengl()
        from dm_control.suite import reacher

        check_positive(image_size=image_size)
        super().__init__(terminate, render_mode)
        self.image_size = image_size
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.physics: Any = reacher.Physics.from_xml_string(*reacher.get_model_and_assets())
        self.physics.named.model.mat_rgba["target", 3] = 0.0

    @property
    def state(self) -> NDArray[np.float32]:
        """Return the angles and angular velocities of the joints, float32 [4], see ``state_names``."""
        return self.full_state.astype(np.float32)

    @property
    def full_state(self) -> NDArray[np.float64]:
        """The state in the precision of the physics, float64 [4]."""
        return np.concatenate((self.physics.data.qpos, self.physics.data.qvel))

    def set_state(self, state: ArrayLike) -> None:
        """Bring the arm to a state, float [4]; see ``StateGoalEnv.set_state``."""
        numbers = self.check_state(state)
        with self.physics.reset_context():
            self.physics.data.qpos[:] = numbers[:2]
            self.physics.data.qvel[:] = numbers[2:]

    def draw_state(self) -> NDArray[np.float64]:
        """Draw the angles of an arm at rest."""
        return np.array([*self.np_random.uniform(-1, 1, 2) * (np.pi, WRIST_LIMIT), 0, 0])

    def move(self, action: NDArray[np.float64]) -> None:
        """Apply torques for one step of the physics."""
        self.physics.set_control(action)
        self.physics.step()

    def at_goal(self) -> bool:
        """Return whether each joint is within the tolerance."""
        return bool((np.abs(self.physics.data.qpos - self.goal) < ANGLE_TOLERANCE).all())

    def draw(self) -> NDArray[np.uint8]:
        """Render the arm without shadows and reflections, uint8 [image_size, image_size, 3]."""
        flags = {"shadow": False, "reflection": False}
        return np.asarray(
            self.physics.render(self.image_size, self.image_size, camera_id=0, render_flag_overrides=flags)
        )

    def simulate(self, states: NDArray[np.float64], actions: NDArray[np.float32], steps: int) -> NDArray[np.float64]:
        """Return where held actions lead from other states, as ``set_state`` and ``step`` would; nothing moves.

        Args:
            states: float64 [m, 4].
            actions: float32 [m, 2].
            steps: of the physics, for which an action is held.

        Returns:
            float64 [m, 4].
        """
        from mujoco import MjData, rollout

        model = self.physics.model.ptr
        starts = np.concatenate((np.zeros((len(states), 1)), states), axis=1)  # the time comes first
        controls = np.clip(actions.astype(np.float64), -1, 1)[:, None].repeat(steps, axis=1)
        reached, _ = rollout.rollout(model, MjData(model), starts, controls, nstep=steps)
        return np.asarray(reached[:, -1, 1:])

    def close(self) -> None:
        """Free the physics and its renderer."""
        self.physics.free()


if REACHER_ID not in gymnasium.registry:
    gymnasium.register(REACHER_ID, entry_point=f"{__name__}:ReacherEnv", max_episode_steps=400)
