"""Steps of several sessions' worlds as one step of a batch, which takes little longer than that of one world."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.simulator import Simulator, State
from vwm.core.states import concatenate_states, split_worlds
from vwm.play.host_copy import HostCopy

Action = int | tuple[float, ...]
"""A discrete action, or the numbers of a continuous or composite one."""


@dataclass(frozen=True)
class BatchStep:
    """What a step of several worlds returned.

    Attributes:
        states: one state for each world, batch 1.
        copy: frames uint8 [b, k, h, w, 3], rewards [b] and terminations [b] of the worlds.
        began: time of ``time.perf_counter`` at which the step began.
        latency_ms: time that it took, in milliseconds.
    """

    states: list[State]
    copy: HostCopy
    began: float
    latency_ms: float


class WorldStepper:
    """Advances worlds together, in one thread.

    The worlds' states are values of their own, so each can be kept, undone and dropped alone. Where the same worlds
    step on together, the batch of their last step is taken instead of concatenating them again.

    Args:
        simulator: of all worlds.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._parts: list[State] = []
        self._whole: State | None = None

    @torch.no_grad()
    def step(self, states: Sequence[State], actions: Sequence[Action]) -> BatchStep:
        """Advance worlds by one step; return when the device has computed it.

        Args:
            states: of the worlds, batch 1 each; see ``can_step_together``.
            actions: one for each world.
        """
        began = time.perf_counter()
        chosen = torch.tensor(list(actions), dtype=torch.int64 if isinstance(actions[0], int) else torch.float32)
        whole, output = self.simulator.step(self._join(states), chosen)
        copy = HostCopy((output.frames, output.reward, output.terminated))
        parts = [whole] if len(states) == 1 else split_worlds(whole)
        self._parts, self._whole = (parts, whole) if len(parts) > 1 else ([], None)
        copy.wait_until_computed()
        return BatchStep(parts, copy, began, (time.perf_counter() - began) * 1000)

    def _join(self, states: Sequence[State]) -> State:
        """Return the states as one batch, and forget the last one, so that nothing but its parts is kept."""
        parts, whole = self._parts, self._whole
        self._parts, self._whole = [], None
        if len(states) == 1:
            return states[0]
        if len(parts) == len(states) and all(given is part for given, part in zip(states, parts, strict=True)):
            return whole
        return concatenate_states(list(states))


def can_step_together(one: State, other: State) -> bool:
    """Return whether the states of two worlds can be one batch: they differ in values only."""
    leaves, others = tree_leaves(one), tree_leaves(other)
    return len(leaves) == len(others) and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim > 0 and (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(leaves, others, strict=True)
    )
