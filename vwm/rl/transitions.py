"""Transitions, which off-policy methods learn from, and a ring of the latest of them among a module's buffers.

Legend: b batch, k size of an observation, a dimensions of an action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.rl.agent import ReplayBatch


class Transitions(NamedTuple):
    """A batch of transitions.

    Attributes:
        observation: float [b, k], before the action.
        action: float [b, a] or int64 [b].
        reward: float [b], earned by the action.
        next_observation: float [b, k].
        terminal: bool [b], the value after the transition is 0.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminal: Tensor


def transitions_of(batch: ReplayBatch) -> Transitions:
    """Return the first transition of every sequence of a batch whose sequences lie within an episode."""
    before, after = batch.observation[:, 0], batch.observation[:, 1]
    return Transitions(before, batch.action[:, 0], batch.reward[:, 1], after, batch.is_terminal[:, 1])


class TransitionBuffer(nn.Module):
    """The last transitions, in buffers of the module: they are saved with it and lie on its device.

    Args:
        capacity: number of transitions.
        observation_size: k.
        action_dims: a.
    """

    stored: Transitions
    num_added: Tensor

    def __init__(self, capacity: int, observation_size: int, action_dims: int) -> None:
        super().__init__()
        check_positive(capacity=capacity)
        self.capacity = capacity
        shapes = ((observation_size,), (action_dims,), (), (observation_size,), ())
        for name, shape in zip(Transitions._fields, shapes, strict=True):
            kind = torch.bool if name == "terminal" else torch.float32
            self.register_buffer(name, torch.zeros((capacity + 1, *shape), dtype=kind))  # the last row is scrap
        self.register_buffer("num_added", torch.zeros((), dtype=torch.int64))

    def add(self, transitions: Transitions, valid: Tensor) -> None:
        """Store those of the transitions for which ``valid``, bool [b], holds; at most ``capacity`` at once."""
        if len(valid) > self.capacity:
            raise ValueError(f"capacity={self.capacity} is less than the {len(valid)} transitions of a rollout")
        places = (self.num_added + valid.cumsum(0) - 1) % self.capacity
        places = torch.where(valid, places, self.capacity)
        for name, value in transitions._asdict().items():
            field = getattr(self, name)
            field.index_copy_(0, places, value.to(field.dtype))
            field[-1].zero_()
        self.num_added += valid.sum()

    def sample(self, count: int) -> Transitions:
        """Draw stored transitions uniformly, with replacement; there must be one at least."""
        stored = self.num_added.clamp(max=self.capacity)
        rows = (torch.rand(count, device=self.num_added.device, dtype=torch.float64) * stored).long()
        return Transitions(*(getattr(self, name)[rows] for name in Transitions._fields))
