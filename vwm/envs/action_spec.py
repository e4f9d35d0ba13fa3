"""The actions of an environment in its own units, and as actions in [-1, 1] or rows of composite actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.core.spaces import ActionSpace
from vwm.envs.composite_actions import CompositeEnvActions, denormalize, is_composite_space, normalized_rest

CONTINUOUS_ACTION_NAMES = {
    "CarRacing": ("steer", "gas", "brake"),
    "Pendulum": ("torque",),
    "MountainCarContinuous": ("force",),
    "BipedalWalker": ("left hip", "left knee", "right hip", "right knee"),
    "vwm/TwoRooms": ("right", "down"),
}
"""Names of continuous actions, by environment id without its version; Gymnasium environments do not state them."""


def _no_bounds() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class EnvActionSpec:
    """The actions of an environment and their bounds in its own units.

    Attributes:
        count: number of discrete actions; 0 for others.
        low, high: float32 [A], the values in the environment's own units that the lowest and highest value of a
            dimension or column stand for; empty for discrete actions.
        names: one per discrete action, dimension or column, for people; may be empty.
        composite: the parts of composite actions; None for others.
    """

    count: int
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    names: tuple[str, ...] = ()
    composite: CompositeEnvActions | None = None

    @classmethod
    def discrete(cls, names: tuple[str, ...], count: int | None = None) -> EnvActionSpec:
        """Discrete actions; as many as there are names, unless ``count`` is given."""
        return cls(len(names) if count is None else count, _no_bounds(), _no_bounds(), names)

    @property
    def space(self) -> ActionSpace:
        """The same actions as agents see them."""
        if self.count:
            return ActionSpace("discrete", self.count, self.names)
        if self.composite is not None:
            return ActionSpace.composite(*self.composite.parts)
        rest = tuple(self.rest) if any(self.rest) else ()
        return ActionSpace("continuous", len(self.low), self.names, rest=rest)

    def to_env(self, action: Any) -> Any:
        """Turn an action (an integer, float32 [A] in [-1, 1], or a composite row) into the environment's own."""
        if self.count:
            return int(action)
        return self.denormalize(action) if self.composite is None else self.composite.to_env(action)

    def denormalize(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map continuous actions from [-1, 1] to [low, high], float32 [..., A]."""
        return denormalize(actions, self.low, self.high)

    @property
    def rest(self) -> list[float]:
        """The normalized value of each dimension [A] that is 0 in the environment's own units, or nearest to it."""
        if self.composite is not None:
            return list(self.space.rest)
        return normalized_rest(self.low, self.high)


def read_action_spec(env_id: str, env: Any) -> EnvActionSpec:
    """Read the actions of a Gymnasium environment.

    Raises:
        ValueError: its action space is neither ``Discrete`` from 0 nor a flat ``Box``, nor composed of such
            (see ``CompositeEnvActions``).
    """
    space = env.action_space
    if is_composite_space(space):
        try:
            composite = CompositeEnvActions(space, getattr(env.unwrapped, "action_parts", None))
            names = ActionSpace.composite(*composite.parts).names
        except ValueError as error:
            raise ValueError(f"{env_id}: {error}") from error
        return EnvActionSpec(0, composite.low, composite.high, names, composite)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        meanings = getattr(env.unwrapped, "get_action_meanings", tuple)
        return EnvActionSpec.discrete(tuple(meanings()), int(space.n))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        low, high = (np.nan_to_num(b, posinf=1, neginf=-1).astype(np.float32) for b in (space.low, space.high))
        names = CONTINUOUS_ACTION_NAMES.get(env_id.rpartition(":")[-1].partition("-v")[0], ())
        return EnvActionSpec(0, low, high, names)
    raise ValueError(f"{env_id}: has action space {space}; supported are Discrete (from 0), flat Box, "
                     "MultiBinary, MultiDiscrete, and Dict and Tuple of them")  # fmt: skip
