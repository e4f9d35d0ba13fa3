"""The tasks with an image goal. A new one is a class and an entry in ``GOAL_TASKS``.

Legend: n episodes, m states, s numbers of a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.envs.lamp import LAMP_ID, LAMP_SPEED, MOVES, ROOM_SIZE, SPRITE_SPEED
from vwm.envs.two_rooms import GOAL_RADIUS, TWO_ROOMS_ID, TwoRoomsEnv, move_with_collisions
from vwm.envs.wrapped_env import resize_frame
from vwm.planning.goal_task import ActionArray, Floats, Frames, GoalTask, StateGoalTask
from vwm.planning.physics_goal_tasks import PushTGoalTask, ReacherGoalTask


class TwoRoomsGoalTask(StateGoalTask):
    """Go to the agent's position in the goal image; start and goal are drawn uniformly, in the same room or not.

    States are x and y of the agent, x of the wall and y of the door; a goal is x and y.
    """

    ENV = TWO_ROOMS_ID
    success = f"within {GOAL_RADIUS:g} pixels of the goal at any time within the budget"
    unit = "pixels"

    def reset_env(self, env: TwoRoomsEnv, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        env.goal = env.sample_goal(rng)
        return env.render_at(env.goal)

    def state(self, env: TwoRoomsEnv) -> Floats:
        """Return x and y of the agent, and the positions of wall and door."""
        return np.array([*env.position, env.wall, env.door], np.float64)

    def set_state(self, env: TwoRoomsEnv, state: Floats) -> None:
        """Place agent, wall and door; see ``StateGoalTask.set_state``."""
        env.position = state[:2].copy()
        env.wall, env.door = state[2:].tolist()

    def set_goal(self, env: TwoRoomsEnv, state: Floats) -> None:
        """Make the agent's position the goal; see ``StateGoalTask.set_goal``."""
        env.goal = state[:2].copy()

    def goal_state(self, env: TwoRoomsEnv) -> Floats:
        """Return x and y of the goal."""
        return env.goal

    def state_distances(self, states: Floats, goals: Floats) -> Floats:
        """Return the Euclidean distances in pixels, ignoring the wall."""
        return np.asarray(np.linalg.norm(states[:, :2] - goals, axis=1))

    def simulate(self, states: Floats, actions: ActionArray) -> Floats:
        """Move all agents at once; see ``StateGoalTask.simulate``."""
        positions, steps = states[:, :2], self.envs[0].step_size * np.clip(actions.astype(np.float64), -1, 1)
        for _ in range(self.frame_skip):
            positions = move_with_collisions(positions, steps, states[:, 2], states[:, 3])
        return np.concatenate((positions, states[:, 2:]), axis=1)

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes reached the goal at any time."""
        return (distances <= GOAL_RADIUS).any(axis=1)

    def groups(self) -> list[str]:
        """Split episodes by whether the goal is in the room of the start."""
        pairs = zip(self.envs, self.first_states, strict=True)
        return ["same room" if (x < wall) == (env.goal[0] < wall) else "other room" for env, (x, _, wall, _) in pairs]

    def background(self, episode: int) -> Frames:
        """Render the arena with the agent at the goal."""
        env = self.envs[episode]
        return env.render_at(env.goal)

    def reference_policies(self) -> Mapping[str, Callable[[], ActionArray]]:
        """Return the policy that moves in a straight line to the goal."""
        return {"straight line": self._straight}

    def _straight(self) -> ActionArray:
        offsets = np.stack([env.goal - env.position for env in self.envs])
        scale = np.maximum(np.abs(offsets).max(axis=1, keepdims=True), self.envs[0].step_size * self.frame_skip)
        return (offsets / scale).astype(np.float32)


class LampGoalTask(StateGoalTask):
    """Bring sprite and lamp of ``vwm/Lamp-v0`` to where they are in the goal image, and the lamp to its color.

    Its composite actions have keys for the sprite, a pointer for the lamp and a choice for the color. The goal, a
    state, is kept as the environment's attribute ``goal``.
    """

    ENV = LAMP_ID
    RADIUS = 4.0
    """Largest distance at the goal, in pixels."""
    success = f"sprite and lamp within {RADIUS:g} pixels of the goal, with its color, at any time within the budget"
    unit = "pixels"

    def reset_env(self, env: Any, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        start, env.goal = env.state, env.state
        while self.distance(env) <= self.RADIUS:
            env.reset()
            env.goal = env.state
            self.set_state(env, start)
        self.set_state(env, env.goal)
        image = env.render()
        self.set_state(env, start)
        return np.asarray(image)

    def state(self, env: Any) -> Floats:
        """Return x and y of sprite and lamp, and the color."""
        return env.state.astype(np.float64)

    def set_state(self, env: Any, state: Floats | NDArray[np.float32]) -> None:
        """Put sprite and lamp where a state has them; see ``StateGoalTask.set_state``."""
        env.sprite, env.lamp, env.color = state[:2].astype(np.float64), state[2:4].astype(np.float64), int(state[4])

    def set_goal(self, env: Any, state: Floats) -> None:
        """Keep a state as the goal; see ``StateGoalTask.set_goal``."""
        env.goal = state.astype(np.float32)

    def goal_state(self, env: Any) -> Floats:
        """Return the goal, a state."""
        return np.asarray(env.goal, np.float64)

    def state_distances(self, states: Floats, goals: Floats) -> Floats:
        """Return the larger distances of sprite and lamp; with another color, the room's side is added."""
        offsets = states - goals
        pixels = np.maximum(np.hypot(*offsets[:, :2].T), np.hypot(*offsets[:, 2:4].T))
        return np.asarray(pixels + np.where(offsets[:, 4] != 0, ROOM_SIZE, 0))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes reached the goal at any time."""
        return (distances <= self.RADIUS).any(axis=1)

    def background(self, episode: int) -> Frames:
        """Return the goal image."""
        return (
            self.goals[episode] if self.size == ROOM_SIZE else resize_frame(self.goals[episode], ROOM_SIZE, ROOM_SIZE)
        )

    def reference_policies(self) -> Mapping[str, Callable[[], ActionArray]]:
        """Return the policy that moves both in straight lines to the goal."""
        return {"straight lines": self._straight}

    def _straight(self) -> ActionArray:
        goals = np.stack([env.goal for env in self.envs])
        offsets = goals - self.states()
        keys = offsets[:, :2] @ np.array(list(MOVES.values())).T > SPRITE_SPEED / 2
        pointer = (offsets[:, 2:4] / (LAMP_SPEED * self.frame_skip)).clip(-1, 1)
        return np.concatenate((goals[:, 4:], keys, pointer), axis=1).astype(np.float32)


class PendulumGoalTask(GoalTask):
    """Swing a pendulum up and hold it; it starts at the environment's random angle and speed."""

    ENV = "Pendulum-v1"
    success = "less than 0.3 rad from upright in each of the last 10 frames of the budget"
    unit = "rad"
    ends = False
    reduction = "sum"
    ANGLE = 0.3
    """Largest angle from upright that counts as held, in rad."""
    HELD = 10
    """Number of frames at the end in which it must be held."""

    def reset_env(self, env: Any, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        while self.distance(env) < self.ANGLE:
            env.reset()
        start, env.state = env.state, np.zeros(2)
        goal = env.render()
        env.state = start
        return np.asarray(goal)

    def state(self, env: Any) -> Floats:
        """Return the angle from upright in [-pi, pi), and the angular velocity."""
        angle, speed = env.state
        return np.array([_wrap_angle(angle), speed])

    def distance(self, env: Any) -> float:
        """Return the absolute angle from upright."""
        return abs(_wrap_angle(env.state[0]))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes held the pendulum upright in the last frames."""
        held = distances[:, -self.HELD :]
        return (held < self.ANGLE).all(axis=1) & (held.shape[1] == self.HELD)


class MountainCarGoalTask(GoalTask):
    """Drive an underpowered car from the valley up to the flag, which requires to gain speed in the other direction."""

    ENV = "MountainCarContinuous-v0"
    success = "at the flag (position 0.45) at any time within the budget"
    unit = "track"
    FLAG = 0.45
    """Position of the flag."""

    def reset_env(self, env: Any, rng: np.random.Generator) -> Frames:
        """Draw start and goal; see ``GoalTask.reset_env``."""
        env.reset(seed=int(rng.integers(2**31 - 1)))
        start, env.state = env.state, np.array([self.FLAG, 0.0])
        goal = env.render()
        env.state = start
        return np.asarray(goal)

    def state(self, env: Any) -> Floats:
        """Return position and velocity."""
        return np.asarray(env.state, np.float64)

    def distance(self, env: Any) -> float:
        """Return the distance along the track."""
        return max(0.0, self.FLAG - float(env.state[0]))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes reached the goal at any time."""
        return (distances <= 0).any(axis=1)


GOAL_TASKS: dict[str, type[GoalTask]] = {
    task.ENV: task
    for task in (
        TwoRoomsGoalTask,
        PushTGoalTask,
        ReacherGoalTask,
        LampGoalTask,
        PendulumGoalTask,
        MountainCarGoalTask,
    )
}


def find_goal_task(env: str) -> type[GoalTask]:
    """Find the task of a Gymnasium id, with or without the module that registers it.

    Raises:
        ValueError: there is none.
    """
    task = GOAL_TASKS.get(env.rpartition(":")[-1])
    if task is None:
        raise ValueError(
            f"{env}: there is no task with an image goal for this environment; there are {', '.join(GOAL_TASKS)}"
        )
    return task


def _wrap_angle(angle: float) -> float:
    """Wrap an angle into [-pi, pi)."""
    return (float(angle) + math.pi) % (2 * math.pi) - math.pi
