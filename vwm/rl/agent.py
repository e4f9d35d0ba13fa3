"""What an agent is: it acts in a batch of environments, and learns from what was played.

The convention of every batch and every replay here is DreamerV3's: ``reward[t]`` came *with* ``observation[t]``, and
``action[t]`` was taken at ``observation[t]``. (A recording's ``rewards[t]`` was earned *by* ``actions[t]``, see
``vwm.data.episode``; it is ``reward[t + 1]`` here.)

Legend: b batch, t time, k numbers of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vwm.core.network_simulator import NetworkSimulator
from vwm.envs.time_step import EnvSpaces, TimeStep

PolicyCarry = Any
"""What an agent remembers of each environment: a nested tuple or dict of tensors with the batch first."""


class ReplayBatch(NamedTuple):
    """What replay hands to an agent: ``TimeStep`` over time, and what was done.

    Attributes:
        observation: [b, t, ...], as in ``TimeStep``.
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


class PolicyStep(NamedTuple):
    """What an agent does: action int64 [b] or float32 [b, a] in [-1, 1]; what it remembers; what replay should keep."""

    action: Tensor
    carry: PolicyCarry
    extras: Mapping[str, Tensor]


class UpdateOutput(NamedTuple):
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


class ActingPolicy(Protocol):
    """Whoever acts in environments, learning or not; see ``Agent`` for what the parts mean."""

    @property
    def device(self) -> torch.device:
        """Where moments are wanted."""
        ...

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``."""
        ...

    def act(self, carry: PolicyCarry, moment: TimeStep, explore: bool) -> PolicyStep:
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
        single_episode: whether the moments of a batch entry must be of one episode.
        lead: so many of its first moments may be of the episode before it all the same.
        extras: what ``act`` hands to replay with every moment: shape and dtype by name.
    """

    spaces: EnvSpaces
    batch_size: int
    batch_length: int
    single_episode: bool = False
    lead: int = 0
    extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.parameters()).device

    @abstractmethod
    def init_carry(self, batch: int) -> PolicyCarry:
        """What is remembered before anything was seen."""

    @abstractmethod
    def act(self, carry: PolicyCarry, moment: TimeStep, explore: bool) -> PolicyStep:
        """What to do now.

        Args:
            carry: as ``init_carry`` or ``act`` returned it. Where ``moment.is_first``, it is of an episode that is
                over: forget it.
            moment: on the agent's device.
            explore: as in training; False as in evaluation.
        """

    def watch(self, carry: PolicyCarry, moment: TimeStep, action: Tensor) -> PolicyStep:
        """What ``act`` would remember and have kept where another has decided on ``action``.

        By default the agent decides too, and is not heard: right where the carry knows nothing of actions. To be
        overridden where it does, or where deciding is dear.
        """
        return self.act(carry, moment, explore=True)._replace(action=action)

    @abstractmethod
    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """One step of learning.

        Raises:
            FloatingPointError: a loss is not finite; no weight was moved by it (see ``vwm.rl.optimizer_step``).
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
