"""The interface of agents: act in a batch of environments, and learn from replay.

Batches and the replay buffer follow DreamerV3's convention: ``reward[t]`` arrived together with ``observation[t]``, and
``action[t]`` was taken at ``observation[t]``. (In a recording, ``rewards[t]`` is earned by ``actions[t]``, see
``vwm.data.episode``; here that reward is ``reward[t + 1]``.)

Legend: b batch, t time, k size of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vwm.core.captured_steps import CaptureBackend, CapturedSteps, Step
from vwm.core.captured_updates import CapturedUpdates
from vwm.core.network_simulator import NetworkSimulator
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.capturable_optimizers import make_capturable, optimizer_settings, optimizer_tensors
from vwm.rl.optimizer_step import run_update
from vwm.rl.replay_priorities import ReplayPriorities

PolicyCarry = Any
"""An agent's memory of each environment: a nested tuple or dict of tensors with the batch first."""


class ReplayBatch(NamedTuple):
    """A batch that replay gives to an agent: sequences of ``TimeStep``, and the actions taken.

    Attributes:
        observation: [b, t, ...], as in ``TimeStep``.
        reward, is_first, is_last, is_terminal: [b, t].
        action: int64 [b, t] or float32 [b, t, a], taken at the time step; meaningless at the last step of an episode.
        extras: what the agent itself stored with each time step, [b, t, ...] each; prioritized replay adds
            ``relative_probability`` [b], see ``ReplayBuffer.sample_by_priority``.
        indices: int64 [b, t], position of each time step in the replay buffer, to write extras back.
    """

    observation: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    action: Tensor
    extras: Mapping[str, Tensor]
    indices: Tensor


class PolicyStep(NamedTuple):
    """An agent's decision: action int64 [b] or float32 [b, a] in [-1, 1], its new memory, and extras for replay."""

    action: Tensor
    carry: PolicyCarry
    extras: Mapping[str, Tensor]


class UpdateOutput(NamedTuple):
    """The results of an update.

    Attributes:
        logs: metrics.
        extras: new values to write back, [b', t', ...] each.
        indices: int64 [b', t'], where to write them: only the positions whose extras are new, since of a time step that
            was drawn twice the last value written counts. None where there are no extras.
        priorities: [b], new priorities of the sequences, where the agent has ``priorities``.
    """

    logs: Mapping[str, float]
    extras: Mapping[str, Tensor] = {}
    indices: Tensor | None = None
    priorities: Tensor | None = None


class ActingPolicy(Protocol):
    """A policy that acts in environments, whether it learns or not; see ``Agent`` for the parts."""

    @property
    def device(self) -> torch.device:
        """The device that ``act`` expects time steps on."""
        ...

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``."""
        ...

    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        ...


class Agent(nn.Module, ABC):
    """Networks, their optimizers, and how they act and learn.

    A subclass takes ``spaces`` first; the rest of its constructor is the schema of its configs. Randomness comes from
    torch's generator, which the training seeds and saves. Everything that learning changes must be in ``state_dict``
    (parameters and buffers) or in ``optimizers()``, so that a resumed run equals an uninterrupted one.

    On a GPU, acting and updates that a subclass passes to ``run_step`` and ``run_update`` are captured as CUDA graphs.

    Attributes:
        spaces: of the environments.
        batch_size, batch_length: of the batches that ``update`` takes.
        single_episode: whether the time steps of a sequence must belong to one episode.
        context_steps: how many of a sequence's first time steps may still belong to the previous episode.
        extras: what ``act`` stores in replay with every time step: shape and dtype by name.
        imagination_horizon: decisions that the agent looks ahead with its world model, of which evaluations compare
            imagined with real returns; 0 without a world model.
        priorities: draws sequences by priorities that ``update`` returns; None draws them uniformly.
        root_step: time step of a sequence whose priority counts.
        captured_steps, captured_updates: run acting and updates from captured graphs; None before ``accelerate``.
    """

    spaces: EnvSpaces
    batch_size: int
    batch_length: int
    single_episode: bool = False
    context_steps: int = 0
    imagination_horizon: int = 0
    extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}
    priorities: ReplayPriorities | None = None
    root_step: int = 0
    captured_steps: CapturedSteps | None = None
    captured_updates: CapturedUpdates | None = None

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.parameters()).device

    @abstractmethod
    def init_carry(self, batch: int) -> PolicyCarry:
        """Return the memory before the first observation."""

    @abstractmethod
    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """Choose actions.

        Args:
            carry: as ``init_carry`` or ``act`` returned it. Where ``time_step.is_first``, it belongs to an episode that
                has ended and must be ignored.
            time_step: on the agent's device.
            explore: True in training, False in evaluation.
        """

    def observe(self, carry: PolicyCarry, time_step: TimeStep, action: Tensor) -> PolicyStep:
        """Return what ``act`` would have returned if it had chosen ``action``, which something else has chosen.

        By default the agent chooses an action, too, which is discarded: correct where the carry does not depend on
        actions. Override it where the carry does, or where choosing an action is expensive.
        """
        return self.act(carry, time_step, explore=True)._replace(action=action)

    @abstractmethod
    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """Make one update.

        Raises:
            FloatingPointError: a loss is not finite; no weight was changed by it (see ``vwm.rl.optimizer_step``).
        """

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimizers by name; they are saved with the networks."""

    def simulator(self, title: str = "world", fps: float = 15.0) -> NetworkSimulator:
        """Return the learned world model as a ``Simulator``; it shares the agent's weights.

        Raises:
            ValueError: the agent learns no world model.
        """
        raise ValueError(f"{type(self).__name__} learns no world model that could be exported")

    def accelerate(self, backend: CaptureBackend | None) -> None:
        """Capture acting and updates from now on, in place; to be called again after optimizers were loaded.

        Args:
            backend: what captures them; None computes everything plainly.
        """
        self.captured_steps = None if backend is None else CapturedSteps(backend)
        self.captured_updates = None
        if backend is not None and make_capturable(type(self).__name__, self.optimizers()):
            self.captured_updates = CapturedUpdates(
                backend, self._changed_by_updates, lambda: optimizer_settings(self.optimizers())
            )

    def run_step(self, name: Hashable, step: Step, carry: PolicyCarry, inputs: Any) -> tuple[PolicyCarry, Any]:
        """Compute ``step(carry, inputs)``, from a captured graph where the agent is accelerated.

        Args:
            name: identifies the function, with the shapes of its tensors.
            step: returns the new carry, and other nested tensors. It may be captured as a graph of kernels: it depends
                on nothing but its arguments and the weights, never reads the value of a tensor in Python, and draws
                random numbers from torch's generator only.
            carry, inputs: nested tensors on the agent's device.
        """
        if self.captured_steps is None:
            return step(carry, inputs)
        return self.captured_steps(name, step, carry, inputs)

    def run_update(
        self, name: Hashable, learn: Callable[[ReplayBatch], tuple[Mapping[str, Tensor], Any]], batch: ReplayBatch
    ) -> tuple[dict[str, float], Any]:
        """Make an update, from a captured graph where the agent is accelerated.

        Args:
            name: identifies the function, with the shapes of its tensors.
            learn: changes weights, buffers and the states of optimizers in place; returns what to log, tensors [], and
                other nested tensors. It may be captured, as in ``run_step``. Its batch has no indices, since those of
                replay are on the CPU.
            batch: from replay.

        Returns:
            What to log as numbers, and the other tensors.

        Raises:
            FloatingPointError: some number is not finite; no weight was changed.
        """
        return run_update(self.captured_updates, name, learn, batch._replace(indices=torch.empty(0)))

    def _changed_by_updates(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers(), *optimizer_tensors(self.optimizers())]

    def set_total_updates(self, updates: int) -> None:
        """Take note of the number of updates that the whole run will make; called once before the first update."""
