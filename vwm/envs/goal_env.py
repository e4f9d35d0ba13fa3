"""The base of environments with a goal: what their resets, steps and images have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from vwm.envs.render_mode import check_render_mode

Observation = TypeVar("Observation")


class GoalEnv(gymnasium.Env[Observation, NDArray[np.float32]], ABC):
    """An environment with a goal and actions in [-1, 1]^2: the reward is 1 at the goal and 0 elsewhere.

    ``reset(options=...)`` takes the names in ``option_names``. ``info`` holds ``goal``.

    Args:
        terminate: end the episode at the goal; without it no episode ends by itself.
        render_mode: ``"rgb_array"`` lets ``render`` return the image.

    Raises:
        ValueError: another render mode.
    """

    option_names: ClassVar[tuple[str, ...]]
    """What ``reset`` takes as options."""
    state_names: ClassVar[tuple[str, ...]]
    """Names of the values of ``state``."""

    def __init__(self, terminate: bool = False, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.terminate = terminate
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal: NDArray[np.float64] = np.full(2, np.nan)  # nowhere before the first reset

    @property
    @abstractmethod
    def state(self) -> NDArray[np.float32]:
        """Return the state, see ``state_names``."""

    @abstractmethod
    def start(self, options: Mapping[str, Any]) -> None:
        """Draw start and goal, of which the options replace some; the draws are equal for all options."""

    @abstractmethod
    def move(self, action: NDArray[np.float64]) -> None:
        """Apply an action in [-1, 1]^2."""

    @abstractmethod
    def at_goal(self) -> bool:
        """Return whether the goal is reached."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return the current observation."""

    @abstractmethod
    def draw(self) -> NDArray[np.uint8]:
        """Return the current image, uint8 [h, w, 3]."""

    def info(self) -> dict[str, Any]:
        """Return what ``reset`` and ``step`` give as ``info``."""
        return {"goal": self.goal.copy()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; every reset draws its start and its goal, also where options replace them."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - set(self.option_names):
            *names, last = self.option_names
            raise ValueError(f"options {sorted(unknown)} are not known; there are {', '.join(names)} and {last}")
        self.start(options)
        return self.observe(), self.info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one step; actions are clipped to [-1, 1]."""
        self.move(np.clip(np.asarray(action, np.float64), -1, 1))
        at_goal = self.at_goal()
        return self.observe(), float(at_goal), self.terminate and at_goal, False, self.info()

    def render(self) -> NDArray[np.uint8] | None:
        """Return the image; None without a render mode."""
        return None if self.render_mode is None else self.draw()


class StateGoalEnv(GoalEnv[NDArray[np.float32]]):
    """A goal environment whose observation is its state and whose goal is the first part of one.

    ``reset(options=...)`` takes ``state`` and ``goal``, see ``state_names`` and ``goal_size``; what it omits is drawn
    at random.
    """

    option_names = ("state", "goal")
    goal_size: ClassVar[int]
    """Number of the state's first values that a goal has."""

    @abstractmethod
    def set_state(self, state: ArrayLike) -> None:
        """Bring the environment to a state; what follows depends on it alone."""

    @abstractmethod
    def draw_state(self) -> NDArray[np.float64]:
        """Draw a state at rest."""

    def start(self, options: Mapping[str, Any]) -> None:
        """See ``GoalEnv.start``."""
        state, goal = self.draw_state(), self.draw_state()[: self.goal_size]
        self.set_state(options.get("state", state))
        self.goal = self.check_numbers("goal", options.get("goal", goal), self.goal_size)

    def observe(self) -> NDArray[np.float32]:
        """See ``GoalEnv.observe``."""
        return self.state

    def check_state(self, state: ArrayLike) -> NDArray[np.float64]:
        """Return a state as float64. Raises ValueError for another shape, or a value that is not finite."""
        return self.check_numbers("state", state, len(self.state_names))

    def check_numbers(self, name: str, given: ArrayLike, count: int) -> NDArray[np.float64]:
        """Return the first ``count`` values of a state, given as option ``name``, as float64; see ``check_state``."""
        numbers = np.array(given, np.float64)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            names = ", ".join(self.state_names[:count])
            raise ValueError(f"options[{name!r}] must be {count} finite numbers ({names}), got {given!r}")
        return numbers
