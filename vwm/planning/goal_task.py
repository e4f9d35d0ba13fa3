"""The base of tasks with an image goal, on which planners are evaluated.

A task plays a number of episodes of one environment in parallel. It uses the environment's true state, which planners
never see: it sets the starts, renders the goal images and measures the distance to the goal.

Legend: n episodes, s numbers of a state, a dimensions of an action, or columns of a composite one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vwm.envs.action_spec import read_action_spec
from vwm.envs.env_ids import make_env
from vwm.envs.wrapped_env import resize_frame
from vwm.planning.goal_distance import GoalReduction

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]
ActionArray = NDArray[np.float32]
"""[n, a] in [-1, 1], or of composite actions."""


class RecordedGoals(NamedTuple):
    """Starts and goals from recorded episodes.

    Attributes:
        starts, goals: float64 [n, s], states.
        names: of the s numbers.
    """

    starts: Floats
    goals: Floats
    names: tuple[str, ...]


class GoalTask(ABC):
    """Episodes of one environment with drawn starts and goals.

    Args:
        episodes: number of episodes, n.
        seed: of starts and goals.
        size: width and height of the frames, in pixels.
        frame_skip: steps of the environment that an action is held for.
        options: of the environment's constructor.
        recorded: starts and goals from recorded episodes (``draw_recorded_goals``); None draws new ones.

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

    Raises:
        ValueError: the environment cannot be set to recorded states, or they are not ``episodes`` of its own.
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
        recorded: RecordedGoals | None = None,
    ) -> None:
        self.options = dict(options or {})
        self.envs: list[Any] = [self.make_env(self.options) for _ in range(episodes)]
        self.actions = read_action_spec(self.ENV, self.envs[0])
        self.size = size
        self.frame_skip = frame_skip
        self.fps = float(self.envs[0].metadata.get("render_fps") or 15) / frame_skip
        generators = [np.random.default_rng([seed, episode]) for episode in range(episodes)]
        if recorded is None:
            images = [self.reset_env(e, r) for e, r in zip(self.envs, generators, strict=True)]
        else:
            images = self.reset_recorded(generators, recorded)
        self.goals = np.stack([self._resize(image) for image in images])
        self.first_states = self.states()

    def make_env(self, options: dict[str, Any]) -> Any:
        """Make one environment, without a time limit; see ``vwm.envs.env_ids.make_env`` for the errors."""
        return make_env(self.ENV, {"render_mode": "rgb_array", **options}).unwrapped

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

    def reset_recorded(self, generators: Sequence[np.random.Generator], recorded: RecordedGoals) -> list[Frames]:
        """Bring the environments to recorded starts, and return the images of their goals; see ``StateGoalTask``."""
        raise ValueError(f"{self.ENV}: cannot be set to recorded states; goals can be drawn")

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


class StateGoalTask(GoalTask):
    """A task whose environment can be set to any state, so that starts and goals may be recorded ones."""

    @abstractmethod
    def set_state(self, env: Any, state: Floats) -> None:
        """Bring an environment to a state, float64 [s]."""

    @abstractmethod
    def set_goal(self, env: Any, state: Floats) -> None:
        """Make a state, float64 [s], the goal of an environment."""

    @abstractmethod
    def goal_state(self, env: Any) -> Floats:
        """Return the goal of an environment, as ``state_distances`` takes it."""

    @abstractmethod
    def state_distances(self, states: Floats, goals: Floats) -> Floats:
        """Return the distances of states float64 [m, s] to goals [m, ...], float64 [m]."""

    @cached_property
    def spare_env(self) -> Any:
        """One more environment, that of no episode; made where it is first used."""
        env = self.make_env(self.options)
        env.reset(seed=0)
        return env

    def distance(self, env: Any) -> float:
        """Return the distance of an environment to its goal."""
        return float(self.state_distances(self.state(env)[None], self.goal_state(env)[None])[0])

    def reset_recorded(self, generators: Sequence[np.random.Generator], recorded: RecordedGoals) -> list[Frames]:
        """Bring the environments to recorded starts, and return the images of their goals."""
        names = tuple(self.envs[0].state_names)
        if recorded.names != names or len(recorded.starts) != len(self.envs):
            raise ValueError(
                f"{self.ENV} has states of {', '.join(names)} and {len(self.envs)} episodes, the recorded goals are "
                f"{len(recorded.starts)} states of {', '.join(recorded.names)}"
            )
        images = []
        for env, rng, start, goal in zip(self.envs, generators, recorded.starts, recorded.goals, strict=True):
            env.reset(seed=int(rng.integers(2**31 - 1)))
            self.set_goal(env, goal)
            self.set_state(env, goal)
            images.append(np.asarray(env.render()))
            self.set_state(env, start)
        return images

    def step(self, actions: ActionArray, active: NDArray[np.bool_]) -> None:
        """Apply actions float32 [n, a] to the active episodes; one that is solved stops within a held action."""
        for env, action, is_active in zip(self.envs, actions, active, strict=True):
            for _ in range(self.frame_skip if is_active else 0):
                env.step(self.actions.to_env(action))
                if self.ends and self.solved(np.array([[self.distance(env)]])).all():
                    break

    def close(self) -> None:
        """Close the environments."""
        super().close()
        if "spare_env" in vars(self):
            self.spare_env.close()

    def simulate(self, states: Floats, actions: ActionArray) -> Floats:
        """Return where actions float32 [m, a] lead from states float64 [m, s] in the true dynamics, float64 [m, s].

        The environments of the episodes do not move.
        """
        env = self.spare_env
        reached = np.empty_like(states)
        for row, (state, action) in enumerate(zip(states, actions, strict=True)):
            self.set_state(env, state)
            for _ in range(self.frame_skip):
                env.step(self.actions.to_env(action))
            reached[row] = self.state(env)
        return reached
