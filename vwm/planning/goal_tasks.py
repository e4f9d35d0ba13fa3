"""Tasks with an image goal, on which planners are evaluated. A new one is a class and an entry in ``GOAL_TASKS``.

A task plays a number of episodes of one environment in parallel. It uses the environment's true state, which planners
never see: it sets the starts, renders the goal images and measures the distance to the goal.

Legend: n episodes, a dimensions of an action, or columns of a composite one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vwm.envs.action_spec import read_action_spec
from vwm.envs.lamp import LAMP_ID, LAMP_SPEED, MOVES, ROOM_SIZE, SPRITE_SPEED
from vwm.envs.two_rooms import GOAL_RADIUS, TWO_ROOMS_ID, TwoRoomsEnv
from vwm.envs.wrapped_env import resize_frame
from vwm.planning.goal_distance import GoalReduction

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]
ActionArray = NDArray[np.float32]
"""[n, a] in [-1, 1], or of composite actions."""


class GoalTask(ABC):
    """Episodes of one environment with drawn starts and goals.

    Args:
        episodes: number of episodes, n.
        seed: of starts and goals.
        size: width and height of the frames, in pixels.
        frame_skip: steps of the environment that an action is held for.
        options: of the environment's constructor.

    Attributes:
        success: description of the success criterion.
        ends: whether an episode is over as soon as it is solved.
        unit: of the distance.
        reduction: default reduction of distances over a plan (see ``GoalDistance``): ``min`` where reaching the goal
            once is enough, because a detour first leads away from it; ``sum`` where the goal must be held.
        envs: the n environments.
        actions: their actions, continuous or composite.
        goals: uint8 [n, size, size, 3], the goal images.
        fps: frames per second, with the frame skip.
        first_states: float64 [n, s], the states at the start.
    """

    ENV: ClassVar[str]
    success: ClassVar[str]
    unit: ClassVar[str]
    ends: ClassVar[bool] = True
    reduction: ClassVar[GoalReduction] = "min"

    def __init__(
        self,
        episodes: int,
        seed: int = 0,
        size: int = 64,
        frame_skip: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.envs: list[Any] = [self.make_env(dict(options or {})) for _ in range(episodes)]
        self.actions = read_action_spec(self.ENV, self.envs[0])
        self.size = size
        self.frame_skip = frame_skip
        self.fps = float(self.envs[0].metadata.get("render_fps") or 15) / frame_skip
        generators = [np.random.default_rng([seed, episode]) for episode in range(episodes)]
        self.goals = np.stack([self._resize(self.reset_env(e, r)) for e, r in zip(self.envs, generators, strict=True)])
        self.first_states = self.states()

    def make_env(self, options: dict[str, Any]) -> Any:
        """Make one environment, without a time limit.

        Raises:
            ValueError: its constructor does not accept the options.
        """
        try:
            env = gymnasium.make(self.ENV, render_mode="rgb_array", disable_env_checker=True, **options)
        except TypeError as error:
            raise ValueError(f"{self.ENV} with options {options}: {error}") from error
        return env.unwrapped

    @abstractmethod
    def reset_env(self, env: Any, rng: np.random.Generator) -> Frames:
        """Bring an environment to a start that is not solved, and return the image of its goal."""

    @abstractmethod
    def state(self, env: Any) -> Floats:
        """Return the true state of an environment, float64 [s], from which paths are plotted."""

    @abstractmethod
    def distance(self, env: Any) -> float:
        """Return the distance of an environment to its goal, in ``unit``."""

    @abstractmethod
    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Return which episodes are solved, bool [n], by their distances so far, float64 [n, t]."""

    def groups(self) -> list[str]:
        """Return the group of each episode, by which results are split; "all" where there is one group."""
        return ["all"] * len(self.envs)

    def reference_policies(self) -> Mapping[str, Callable[[], ActionArray]]:
        """Return policies that use the true state, by name; each returns the current actions of all episodes."""
        return {}

    def background(self, episode: int) -> Frames | None:
        """Return an image to plot an episode's path on, one pixel per unit of the state, or None."""
        return None

    def step(self, actions: ActionArray, active: NDArray[np.bool_]) -> None:
        """Apply actions float32 [n, a] to the active episodes; the others do not change."""
        for env, action, is_active in zip(self.envs, actions, active, strict=True):
            for _ in range(self.frame_skip if is_active else 0):
                env.step(self.actions.to_env(action))

    def frames(self) -> Frames:
        """Render the current frames, uint8 [n, size, size, 3]."""
        return np.stack([self._resize(env.render()) for env in self.envs])

    def states(self) -> Floats:
        """Return the true states, float64 [n, s]."""
        return np.stack([self.state(env) for env in self.envs])

    def distances(self) -> Floats:
        """Return the distances to the goals, float64 [n]."""
        return np.array([self.distance(env) for env in self.envs])

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _resize(self, frame: Frames) -> Frames:
        return resize_frame(np.asarray(frame), self.size, self.size)


class TwoRoomsGoalTask(GoalTask):
    """Go to the agent's position in the goal image; start and goal are drawn uniformly, in the same room or not."""

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
        return env.state.astype(np.float64)

    def distance(self, env: TwoRoomsEnv) -> float:
        """Return the Euclidean distance in pixels, ignoring the wall."""
        return float(np.linalg.norm(env.position - env.goal))

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


class LampGoalTask(GoalTask):
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
            self._place(env, start)
        self._place(env, env.goal)
        image = env.render()
        self._place(env, start)
        return np.asarray(image)

    def state(self, env: Any) -> Floats:
        """Return x and y of sprite and lamp, and the color."""
        return env.state.astype(np.float64)

    def distance(self, env: Any) -> float:
        """Return the larger distance of sprite and lamp to the goal; with another color, the room's side is added."""
        offset = env.state.astype(np.float64) - env.goal
        pixels = max(math.hypot(*offset[:2]), math.hypot(*offset[2:4]))
        return pixels + (ROOM_SIZE if offset[4] else 0)

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

    @staticmethod
    def _place(env: Any, state: NDArray[np.float32]) -> None:
        """Put sprite and lamp where a state has them."""
        env.sprite, env.lamp, env.color = state[:2].astype(np.float64), state[2:4].astype(np.float64), int(state[4])


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
    task.ENV: task for task in (TwoRoomsGoalTask, LampGoalTask, PendulumGoalTask, MountainCarGoalTask)
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
