"""What a batch of environments shows and takes at one time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.spaces import ActionSpace


@dataclass(frozen=True)
class EnvSpaces:
    """What an environment shows and takes.

    Attributes:
        observation: (k,) for float32 vectors, (h, w, 3) for uint8 pictures.
        actions: see ``ActionSpace``.
    """

    observation: tuple[int, ...]
    actions: ActionSpace

    @property
    def pixels(self) -> bool:
        """Whether observations are pictures."""
        return len(self.observation) == 3

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action: () for discrete ones (int64), (size,) for continuous ones (float32)."""
        return () if self.actions.kind == "discrete" else (self.actions.size,)

    @property
    def action_sizes(self) -> tuple[int, int]:
        """Number of discrete actions and dimensions of continuous ones, of which one is 0."""
        return (self.actions.size, 0) if self.actions.kind == "discrete" else (0, self.actions.size)

    @property
    def action_dtype(self) -> torch.dtype:
        """int64 or float32."""
        return torch.int64 if self.actions.kind == "discrete" else torch.float32


class TimeStep(NamedTuple):
    """What a batch of environments shows at one moment.

    After a moment with ``is_last`` comes the first one of the next episode, whatever the action.

    Attributes:
        observation: uint8 [b, h, w, 3] or float32 [b, k].
        reward: float32 [b], what the action before it earned; 0 at the first moment of an episode.
        is_first: bool [b], an episode begins.
        is_last: bool [b], an episode ends, for whatever reason.
        is_terminal: bool [b], the world ended, so that nothing is worth anything from here on; it is also last.
    """

    observation: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
