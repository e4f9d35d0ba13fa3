"""What an agent is: it acts in a batch of environments, and learns from what was played.

The convention of every batch and every replay here is DreamerV3's: ``reward[t]`` came *with* ``observation[t]``, and
``action[t]`` was taken at ``observation[t]``. (A recording's ``rewards[t]`` was earned *by* ``actions[t]``, see
``vwm.data.episode``; it is ``reward[t + 1]`` here.)

Legend: b batch, t time, k numbers of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vwm.simulator.interface import ActionSpace
from vwm.simulator.video import NetworkSimulator

Carry = Any
"""What an agent remembers of each environment: a nested tuple or dict of tensors with the batch first."""


@dataclass(frozen=True)
class Spaces:
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


class Moment(NamedTuple):
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


class Batch(NamedTuple):
    """What replay hands to an agent: ``Moment`` over time, and what was done.

    Attributes:
        observation: [b, t, ...], as in ``Moment``.
        reward, is_first, is_last, is_terminal: [b, t].
        action: int64 [b, t] or float32 [b, t, a], taken at the moment; of a last moment it means nothing.
        extras: what the agent itself stored with each moment, [b, t, ...] each.
        places: int64 [b, t], of each moment in the replay, to write extras back.
    """

    observation: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    action: Tensor
    extras: Mapping[str, Tensor]
    places: Tensor


class Acted(NamedTuple):
    """What an agent does: action int64 [b] or float32 [b, a] in [-1, 1]; what it remembers; what replay should keep."""

    action: Tensor
    carry: Carry
    extras: Mapping[str, Tensor]


class Updated(NamedTuple):
    """What an update leaves.

    Attributes:
        logs: numbers.
        extras: to write back, [b', t', ...] each.
        places: int64 [b', t'], where to: those of the batch whose extras are new, and no others, for of a moment that
            was drawn twice the last one written counts. None where there are no extras.
    """

    logs: Mapping[str, float]
    extras: Mapping[str, Tensor] = {}
    places: Tensor | None = None


class Player(Protocol):
    """Whoever acts in environments, learning or not; see ``Agent`` for what the parts mean."""

    @property
    def device(self) -> torch.device:
        """Where moments are wanted."""
        ...

    def init_carry(self, batch: int) -> Carry:
        """See ``Agent.init_carry``."""
        ...

    def act(self, carry: Carry, moment: Moment, explore: bool) -> Acted:
        """See ``Agent.act``."""
        ...


class Agent(nn.Module, ABC):
    """Networks, their optimizers, and how they act and learn.

    A class takes ``spaces`` first; the rest of its constructor is the schema of configs. Whatever is random is drawn
    from torch's generator, which the training seeds and saves. All that learning changes must be in ``state_dict``
    (modules and buffers) or in ``optimizers()``, so that a resumed run equals an unbroken one.

    Attributes:
        spaces: of the environments.
        batch_size, batch_length: what ``update`` wants of replay.
        within_episodes: whether the moments of a batch entry must be of one episode.
        lead: so many of its first moments may be of the episode before it all the same.
        extras: what ``act`` hands to replay with every moment: shape and dtype by name.
    """

    spaces: Spaces
    batch_size: int
    batch_length: int
    within_episodes: bool = False
    lead: int = 0
    extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.parameters()).device

    @abstractmethod
    def init_carry(self, batch: int) -> Carry:
        """What is remembered before anything was seen."""

    @abstractmethod
    def act(self, carry: Carry, moment: Moment, explore: bool) -> Acted:
        """What to do now.

        Args:
            carry: as ``init_carry`` or ``act`` returned it. Where ``moment.is_first``, it is of an episode that is
                over: forget it.
            moment: on the agent's device.
            explore: as in training; False as in evaluation.
        """

    def watch(self, carry: Carry, moment: Moment, action: Tensor) -> Acted:
        """What ``act`` would remember and have kept where another has decided on ``action``.

        By default the agent decides too, and is not heard: right where the carry knows nothing of actions. To be
        overridden where it does, or where deciding is dear.
        """
        return self.act(carry, moment, explore=True)._replace(action=action)

    @abstractmethod
    def update(self, batch: Batch) -> Updated:
        """One step of learning.

        Raises:
            FloatingPointError: a loss is not finite; no weight was moved by it (see ``vwm.agents.finite``).
        """

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By name; they are saved with the networks."""

    def simulator(self, title: str = "world", fps: float = 15.0) -> NetworkSimulator:
        """The world that the agent has learned, as others see it; it has the agent's own weights, not a copy.

        Raises:
            ValueError: it has learned none.
        """
        raise ValueError(f"{type(self).__name__} learns no world that could be exported")

    def begin(self, updates: int) -> None:
        """Called once before the first update, with the number of updates that the whole run will make."""
