"""The spaces of an environment, and one time step of a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vwm.core.spaces import ActionSpace, ObservationSpace


@dataclass(frozen=True)
class EnvSpaces:
    """The observation and action space of an environment.

    Attributes:
        observation: images or vectors.
        actions: see ``ActionSpace``.
    """

    observation: ObservationSpace
    actions: ActionSpace

    @property
    def action_sizes(self) -> tuple[int, int]:
        """Number of discrete actions and dimensions of continuous ones, of which one is 0."""
        return (self.actions.size, 0) if self.actions.kind == "discrete" else (0, self.actions.size)


class TimeStep(NamedTuple):
    """What a batch of environments shows at one time step.

    With ``BatchedEnv.autoreset`` ``NEXT_STEP`` (agents), the step after one with ``is_last`` ignores its action and
    shows the first observation of the next episode. With ``SAME_STEP`` (recording), the step that ends an episode
    shows that observation at once, and ``is_first`` and ``is_last`` coincide: reward, ``is_last`` and ``is_terminal``
    belong to the episode that ended.

    Attributes:
        observation: uint8 [b, h, w, 3] or float32 [b, k].
        reward: float32 [b], of the action before it; 0 after a reset.
        is_first: bool [b], the observation begins an episode.
        is_last: bool [b], an episode ended, for whatever reason.
        is_terminal: bool [b], the environment terminated, so that the value of what follows is 0; it is also last.
    """

    observation: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
