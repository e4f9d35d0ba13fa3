"""Environments with an image goal, which planners are evaluated on. A new one is a class and a line in ``GOAL_TASKS``.

A task plays any number of episodes of one game side by side. It knows the game's true state, which the planner never
sees: it begins episodes where it likes, draws the picture of a goal, and tells how far away the goal still is.

Legend: n episodes, a dimensions of an action.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vwm.envs.recording_envs import resize_frame
from vwm.envs.two_rooms import GOAL_RADIUS, TWO_ROOMS_ID, TwoRoomsEnv
from vwm.planning.goal_distance import GoalReduction

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]
ActionArray = NDArray[np.float32]
"""[n, a] in [-1, 1]."""


class GoalTask(ABC):
    """Episodes of one game, begun anew where the task draws them.

    Args:
        episodes: how many, n.
        seed: of starts and goals.
        size: side of the frames, in pixels.
        frame_skip: steps of the game that an action is held for.
        options: of the game's constructor.

    Attributes:
        success: what counts as success, in words.
        ends: an episode is over as soon as it is solved.
        unit: of the distance.
        over: which steps of a plan count (see ``GoalDistance``): a goal that is enough to touch wants ``min``, for a
            way round begins by going away from it; one that must be held wants ``sum``.
        goals: uint8 [n, size, size, 3], the goals' pictures.
        fps: frames a second of the game, frame skip and all.
    """

    ENV: ClassVar[str]
    success: ClassVar[str]
    unit: ClassVar[str]
    ends: ClassVar[bool] = True
    over: ClassVar[GoalReduction] = "min"

    def __init__(
        self,
        episodes: int,
        seed: int = 0,
        size: int = 64,
        frame_skip: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.games: list[Any] = [self.open(dict(options or {})) for _ in range(episodes)]
        self.size, self.frame_skip = size, frame_skip
        self.fps = float(self.games[0].metadata.get("render_fps") or 15) / frame_skip
        generators = [np.random.default_rng([seed, episode]) for episode in range(episodes)]
        self.goals = np.stack([self._fit(self.begin(g, r)) for g, r in zip(self.games, generators, strict=True)])
        self.first_states = self.states()

    def open(self, options: dict[str, Any]) -> Any:
        """One game, without a limit of time.

        Raises:
            ValueError: it does not take the options.
        """
        try:
            made = gymnasium.make(self.ENV, render_mode="rgb_array", disable_env_checker=True, **options)
        except TypeError as error:
            raise ValueError(f"{self.ENV} with options {options}: {error}") from error
        return made.unwrapped

    @abstractmethod
    def begin(self, game: Any, rng: np.random.Generator) -> Frames:
        """Bring a game to a start that is not solved, and return the picture of its goal."""

    @abstractmethod
    def state(self, game: Any) -> Floats:
        """Where a game stands, as the paths are drawn: float64 [s]."""

    @abstractmethod
    def distance(self, game: Any) -> float:
        """How far a game is from its goal, in ``unit``."""

    @abstractmethod
    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Which episodes are solved, by their distances up to now, float64 [n, t] -> bool [n]."""

    def groups(self) -> list[str]:
        """The kind of each episode, by which results are split; one kind where there is nothing to split."""
        return ["all"] * len(self.games)

    def references(self) -> Mapping[str, Callable[[], ActionArray]]:
        """Policies that know the true state, to compare with, by name: each says what all episodes do now."""
        return {}

    def picture(self, episode: int) -> Frames | None:
        """What lies behind an episode's path when it is drawn, and is as large as the state's unit says; or nothing."""
        return None

    def act(self, actions: ActionArray, playing: NDArray[np.bool_]) -> None:
        """Play float32 [n, a] in [-1, 1] where ``playing``; the other games stand still."""
        for game, action, on in zip(self.games, actions, playing, strict=True):
            low, high = game.action_space.low, game.action_space.high
            for _ in range(self.frame_skip if on else 0):
                game.step((low + (action + 1) / 2 * (high - low)).astype(np.float32).clip(low, high))

    def frames(self) -> Frames:
        """What is to be seen now, uint8 [n, size, size, 3]."""
        return np.stack([self._fit(game.render()) for game in self.games])

    def states(self) -> Floats:
        """float64 [n, s]."""
        return np.stack([self.state(game) for game in self.games])

    def distances(self) -> Floats:
        """float64 [n]."""
        return np.array([self.distance(game) for game in self.games])

    @property
    def action_size(self) -> int:
        """a, dimensions of an action."""
        return int(self.games[0].action_space.shape[0])

    def close(self) -> None:
        """Free what the games hold."""
        for game in self.games:
            game.close()

    def _fit(self, frame: Frames) -> Frames:
        return resize_frame(np.asarray(frame), self.size, self.size)


class TwoRoomsGoalTask(GoalTask):
    """Go to where the agent is in the goal's picture; start and goal are drawn uniformly, in one room or in two."""

    ENV = TWO_ROOMS_ID
    success = f"within {GOAL_RADIUS:g} pixels of the goal at any time within the budget"
    unit = "pixels"

    def begin(self, game: TwoRoomsEnv, rng: np.random.Generator) -> Frames:
        """See ``GoalTask.begin``."""
        game.reset(seed=int(rng.integers(2**31 - 1)))
        game.goal = game.sample_goal(rng)
        return game.render_at(game.goal)

    def state(self, game: TwoRoomsEnv) -> Floats:
        """x, y, wall, door."""
        return game.state.astype(np.float64)

    def distance(self, game: TwoRoomsEnv) -> float:
        """In pixels, through the wall."""
        return float(np.linalg.norm(game.position - game.goal))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Once there."""
        return (distances <= GOAL_RADIUS).any(axis=1)

    def groups(self) -> list[str]:
        """By whether the goal is in the room of the start."""
        pairs = zip(self.games, self.first_states, strict=True)
        return ["same room" if (x < wall) == (game.goal[0] < wall) else "other room" for game, (x, _, wall, _) in pairs]

    def picture(self, episode: int) -> Frames:
        """The arena, with the agent at the goal."""
        game = self.games[episode]
        return game.render_at(game.goal)

    def references(self) -> Mapping[str, Callable[[], ActionArray]]:
        """A straight line to the goal."""
        return {"straight line": self._straight}

    def _straight(self) -> ActionArray:
        way = np.stack([game.goal - game.position for game in self.games])
        furthest = np.maximum(np.abs(way).max(axis=1, keepdims=True), self.games[0].step_size * self.frame_skip)
        return (way / furthest).astype(np.float32)


class PendulumGoalTask(GoalTask):
    """Swing a pendulum up and keep it there; it starts at a random angle and speed, as the game has it."""

    ENV = "Pendulum-v1"
    success = "less than 0.3 rad from upright in each of the last 10 frames of the budget"
    unit = "rad"
    ends, over = False, "sum"
    ANGLE, HELD = 0.3, 10

    def begin(self, game: Any, rng: np.random.Generator) -> Frames:
        """See ``GoalTask.begin``."""
        game.reset(seed=int(rng.integers(2**31 - 1)))
        while self.distance(game) < self.ANGLE:
            game.reset()
        start, game.state = game.state, np.zeros(2)
        goal = game.render()
        game.state = start
        return np.asarray(goal)

    def state(self, game: Any) -> Floats:
        """Angle from upright in [-pi, pi), and its speed."""
        angle, speed = game.state
        return np.array([_wrap_angle(angle), speed])

    def distance(self, game: Any) -> float:
        """Angle from upright."""
        return abs(_wrap_angle(game.state[0]))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Held to the end of what was played."""
        held = distances[:, -self.HELD :]
        return (held < self.ANGLE).all(axis=1) & (held.shape[1] == self.HELD)


class MountainCarGoalTask(GoalTask):
    """Drive a weak car up to the flag, for which it must first go the other way; it starts in the valley."""

    ENV = "MountainCarContinuous-v0"
    success = "at the flag (position 0.45) at any time within the budget"
    unit = "track"
    FLAG = 0.45

    def begin(self, game: Any, rng: np.random.Generator) -> Frames:
        """See ``GoalTask.begin``."""
        game.reset(seed=int(rng.integers(2**31 - 1)))
        start, game.state = game.state, np.array([self.FLAG, 0.0])
        goal = game.render()
        game.state = start
        return np.asarray(goal)

    def state(self, game: Any) -> Floats:
        """Position and speed."""
        return np.asarray(game.state, np.float64)

    def distance(self, game: Any) -> float:
        """Along the track."""
        return max(0.0, self.FLAG - float(game.state[0]))

    def solved(self, distances: Floats) -> NDArray[np.bool_]:
        """Once there."""
        return (distances <= 0).any(axis=1)


GOAL_TASKS: dict[str, type[GoalTask]] = {
    task.ENV: task for task in (TwoRoomsGoalTask, PendulumGoalTask, MountainCarGoalTask)
}


def find_goal_task(env: str) -> type[GoalTask]:
    """The task of a Gymnasium id, with or without the module that registers it.

    Raises:
        ValueError: there is none.
    """
    task = GOAL_TASKS.get(env.rpartition(":")[-1])
    if task is None:
        raise ValueError(f"{env}: no task has its goal as a picture there; there are {', '.join(GOAL_TASKS)}")
    return task


def _wrap_angle(angle: float) -> float:
    """Into [-pi, pi)."""
    return (float(angle) + math.pi) % (2 * math.pi) - math.pi
