"""Push-T and Reacher as tasks with an image goal, with the success criteria of stable-worldmodel (Galilai, 2026).

Legend: m states.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vwm.envs.push_t import ANGLE_TOLERANCE, POSITION_TOLERANCE, PUSH_T_ID, PushTEnv, push_t_errors
from vwm.envs.reacher import ANGLE_TOLERANCE as JOINT_TOLERANCE
from vwm.envs.reacher import REACHER_ID, ReacherEnv
from vwm.planning.goal_task import ActionArray, Floats, Frames, StateGoalTask


class PushTGoalTask(StateGoalTask):
    """Bring disc and block of ``vwm/PushT-v0`` to where they are in the goal image; goals are states, float64 [m, 7].

    A distance of 1 is the border of the goal: the larger one of the positions' and the angle's share of what is
    allowed.
    """

    ENV = PUSH_T_ID
    success = (
        f"disc and block within {POSITION_TOLERANCE:g} of 512 units of the goal together, and the block within "
        f"{np.rad2deg(ANGLE_TOLERANCE):g} degrees, at any time within the budget"
    )
    unit = "tolerances"

    def reset_env(self, env: PushTEnv, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        while self.distance(env) < 1:
            env.reset()
        start = self.state(env)
        env.set_state(env.goal)
        image = np.asarray(env.render())
        env.set_state(start)
        return image

    def state(self, env: PushTEnv) -> Floats:
        """Return position and velocity of the disc, and pose of the block."""
        assert env.physics is not None, "the environment was reset"
        return env.physics.state

    def set_state(self, env: PushTEnv, state: Floats) -> None:
        """See ``StateGoalTask.set_state``."""
        env.set_state(state)

    def set_goal(self, env: PushTEnv, state: Floats) -> None:
        """See ``StateGoalTask.set_goal``."""
        env.goal = state.copy()

    def goal_state(self, env: PushTEnv) -> Floats:
        """Return the goal, a state."""
        return env.goal

    def state_distances(self, states: Floats, goals: Floats) -> Floats:
        """Return the larger of the two errors, in tolerances."""
        position, angle = push_t_errors(states, goals)
        return np.asarray(np.maximum(position / POSITION_TOLERANCE, angle / ANGLE_TOLERANCE))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes reached the goal at any time."""
        return (distances < 1).any(axis=1)


class ReacherGoalTask(StateGoalTask):
    """Bring the joints of ``vwm/Reacher-v0`` to the angles in the goal image; goals are angles, float64 [m, 2]."""

    ENV = REACHER_ID
    success = f"each joint within {JOINT_TOLERANCE:g} rad of the goal at any time within the budget"
    unit = "rad"

    def reset_env(self, env: ReacherEnv, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        while self.distance(env) < JOINT_TOLERANCE:
            env.reset()
        start = self.state(env)
        env.set_state([*env.goal, 0, 0])
        image = np.asarray(env.render())
        env.set_state(start)
        return image

    def state(self, env: ReacherEnv) -> Floats:
        """Return the angles and angular velocities of the joints."""
        return env.full_state

    def set_state(self, env: ReacherEnv, state: Floats) -> None:
        """See ``StateGoalTask.set_state``."""
        env.set_state(state)

    def set_goal(self, env: ReacherEnv, state: Floats) -> None:
        """Make the angles of a state the goal; see ``StateGoalTask.set_goal``."""
        env.goal = state[:2].copy()

    def goal_state(self, env: ReacherEnv) -> Floats:
        """Return the angles of the goal."""
        return env.goal

    def state_distances(self, states: Floats, goals: Floats) -> Floats:
        """Return the larger difference of the two joints."""
        return np.asarray(np.abs(states[:, :2] - goals).max(axis=1))

    def simulate(self, states: Floats, actions: ActionArray) -> Floats:
        """Move all arms in one call of MuJoCo; see ``StateGoalTask.simulate``."""
        env: ReacherEnv = self.envs[0]
        return env.simulate(states, actions, self.frame_skip)

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes reached the goal at any time."""
        return (distances < JOINT_TOLERANCE).any(axis=1)
